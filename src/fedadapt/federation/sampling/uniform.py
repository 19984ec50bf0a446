"""Everybody is as likely as everybody else."""

from __future__ import annotations

from fedadapt.federation.sampling.base import Pool, Sampling
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("sampling", "uniform")
def uniform() -> Sampling:
    """Every client is as likely to be asked as any other.

    Example:
        >>> uniform().choose(Pool(10**9), 3, 1, Seeds(0))
        [200670288, 345125387, 851447914]
    """

    def choose(pool: Pool, count: int, round: int, seeds: Seeds) -> list[int]:
        if count >= pool.num_clients:
            return list(range(pool.num_clients))
        generator = seeds.numpy("cohort", round=round)
        chosen: set[int] = set()
        while len(chosen) < count:
            chosen.update(generator.integers(pool.num_clients, size=count - len(chosen)).tolist())
        return sorted(chosen)

    return Sampling(choose, even=True)

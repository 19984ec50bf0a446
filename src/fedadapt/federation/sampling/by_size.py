"""Who holds more is asked more often."""

from __future__ import annotations

import numpy as np

from fedadapt.federation.sampling.base import Pool, Sampling
from fedadapt.registry import register
from fedadapt.seeds import Seeds

MAX_LISTED = 1000
"""Up to so many clients all sizes are looked at; with more, only those of whom chance comes upon."""


@register("sampling", "by_size")
def by_size() -> Sampling:
    """A client is drawn with a probability in proportion to the samples it holds, one after the other without return.

    A mean of their updates weighted by samples then counts size twice; techniques that weigh clients equally, such as
    `feddyn`, do not.

    Source:
        T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, *Federated Optimization in Heterogeneous
        Networks*, MLSys 2020, algorithm 2.

    Differs:
        There a client may be drawn twice in a round.
    """
    return Sampling(_choose)


def _choose(pool: Pool, count: int, round: int, seeds: Seeds) -> list[int]:
    if count >= pool.num_clients:
        return list(range(pool.num_clients))
    generator, held = seeds.numpy("cohort", round=round), pool.held
    if held.sizes is not None or pool.num_clients <= MAX_LISTED:
        listed = [held.size(k) for k in range(len(held))] if held.sizes is None else held.sizes.tolist()
        sizes = np.array(listed, dtype=float)
        return sorted(generator.choice(len(sizes), count, replace=False, p=sizes / sizes.sum()).tolist())
    # By rejection, which looks at few clients if nobody holds very much more than others.
    chosen: set[int] = set()
    while len(chosen) < count:
        client = int(generator.integers(pool.num_clients))
        if generator.random() * held.largest < held.size(client):
            chosen.add(client)
    return sorted(chosen)

"""Who takes part in a round."""

from __future__ import annotations

from fedadapt.seeds import Seeds


def sample_cohort(num_clients: int, cohort_size: int, round: int, seeds: Seeds) -> list[int]:
    """`cohort_size` different clients, uniformly, sorted; all of them if there are no more.

    Costs memory and time by the size of the cohort, not by the number registered.

    Args:
        num_clients: registered clients, numbered from 0.
        cohort_size: how many to ask.
        round: counted from 1.
        seeds: of the run; the same round always has the same cohort.
    """
    if cohort_size >= num_clients:
        return list(range(num_clients))
    generator = seeds.numpy("cohort", round=round)
    chosen: set[int] = set()
    while len(chosen) < cohort_size:
        chosen.update(generator.integers(num_clients, size=cohort_size - len(chosen)).tolist())
    return sorted(chosen)

"""Bulyan."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, Gathered, ServerRule
from fedadapt.algorithms.robust import as_sent, by_coordinate, krum_scores, squared_distances
from fedadapt.params import Params
from fedadapt.registry import register


@register("algorithm", "bulyan")
def bulyan(attackers: Annotated[int, Field(ge=0)] = 1) -> Algorithm:
    """Bulyan: Krum picks updates one by one, and of those each value follows the ones nearest their median.

    Of n updates ``t = n - 2 f`` are picked; each value is the mean of the ``t - 2 f`` picked ones that are closest to
    the median of the picked.

    Args:
        attackers: f, how many of a round's clients may lie; n must be at least ``4 f + 3``. A round with fewer
            updates changes nothing. With 0 it is the equal mean.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = bulyan(attackers=1)
        >>> state = technique.init({"w": torch.zeros(1)})
        >>> deltas = (1.0, 1.1, 1.2, 1.3, 1.4, 5.0, -900.0)
        >>> updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate(deltas)]
        >>> technique.step(state, updates)["model"]["w"]  # 1.0 to 1.4 are picked, 1.1 to 1.3 averaged
        tensor([1.2000])

    Source:
        E. M. El Mhamdi, R. Guerraoui, S. Rouault, *The Hidden Vulnerability of Distributed Learning in Byzantium*, ICML
        2018, section 4.

    Differs:
        When Krum has so few left that nobody would be a neighbour, the nearest one still is.
    """
    least = 4 * attackers + 3

    def aggregate(gathered: Gathered) -> Params:
        distances = squared_distances(gathered)
        left, picked = list(range(len(distances))), list[int]()
        while len(picked) < len(distances) - 2 * attackers:
            scores = (
                krum_scores(distances[left][:, left], attackers) if len(left) > 1 else distances[left, left]
            )
            picked.append(left.pop(int(scores.argmin())))
        keep = len(picked) - 2 * attackers
        found = {}
        for name, values in by_coordinate(gathered, sorted(picked)).items():
            count = len(values)
            median = values[(count - 1) // 2 : count // 2 + 1].mean(0)
            nearest = (values - median).abs().argsort(dim=0, stable=True)[:keep]
            found[name] = values.gather(0, nearest).mean(0)
        return as_sent(found, gathered)

    return Algorithm(
        "Bulyan",
        server=ServerRule(aggregate=aggregate, least=least),
    )

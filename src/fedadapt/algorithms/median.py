"""The coordinate-wise median."""

from __future__ import annotations

from fedadapt.algorithms.algorithm import Algorithm, Gathered, ServerRule
from fedadapt.algorithms.robust import as_sent, by_coordinate
from fedadapt.params import Params
from fedadapt.registry import register


@register("algorithm", "median")
def median() -> Algorithm:
    """Median: each value moves by the median of what the clients changed it by; robust up to half of them.

    With an even number it is the mean of the two in the middle. With two clients it is their equal mean.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> state = median().init({"w": torch.zeros(1)})
        >>> updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate((1.0, 2.0, 900.0))]
        >>> median().step(state, updates)["model"]["w"]
        tensor([2.])

    Source:
        D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, *Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates*, ICML 2018, algorithm 1, option I.

    Differs:
        The median is of whole local trainings, not of single gradients.
    """
    return Algorithm("Median", server=ServerRule(aggregate=_aggregate))


def _aggregate(gathered: Gathered) -> Params:
    count = len(gathered.updates)
    middle = slice((count - 1) // 2, count // 2 + 1)
    return as_sent({name: t[middle].mean(0) for name, t in by_coordinate(gathered).items()}, gathered)

"""The coordinate-wise trimmed mean."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, Gathered, ServerRule
from fedadapt.algorithms.robust import as_sent, by_coordinate
from fedadapt.params import Params
from fedadapt.registry import register


@register("algorithm", "trimmed_mean")
def trimmed_mean(fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.2) -> Algorithm:
    """Trimmed mean: of what the clients changed each value by, the largest and smallest are left out.

    Args:
        fraction: of the clients, left out at each end, rounded down; 0 is the equal mean. Robust against attackers
            up to this share. A round with so few updates that none would be left out changes nothing.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = trimmed_mean(fraction=0.25)
        >>> state = technique.init({"w": torch.zeros(1)})
        >>> deltas = (1.0, 2.0, -900.0, 900.0)
        >>> updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate(deltas)]
        >>> technique.step(state, updates)["model"]["w"]
        tensor([1.5000])

    Source:
        D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, *Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates*, ICML 2018, algorithm 1, option II.

    Differs:
        The mean is of whole local trainings, not of single gradients.
    """

    def aggregate(gathered: Gathered) -> Params:
        count = len(gathered.updates)
        # A product such as 0.29 * 100 may fall just short of the whole number that it stands for.
        left_out = int(fraction * count + 1e-9)
        inner = {n: t[left_out : count - left_out].mean(0) for n, t in by_coordinate(gathered).items()}
        return as_sent(inner, gathered)

    # Of fewer nobody would be left out, and one attacker could move the mean anywhere.
    least = math.ceil(min(1 / fraction, 2.0**31) - 1e-9) if fraction else 1
    return Algorithm("Trimmed mean", server=ServerRule(aggregate=aggregate, least=least))

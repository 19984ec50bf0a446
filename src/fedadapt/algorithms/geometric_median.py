"""The geometric median."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, Gathered, ServerRule
from fedadapt.algorithms.robust import as_sent, stacked
from fedadapt.params import Params
from fedadapt.registry import register


@register("algorithm", "geometric_median")
def geometric_median(
    iterations: Annotated[int, Field(ge=1)] = 32, smoothing: Annotated[float, Field(gt=0)] = 1e-6
) -> Algorithm:
    """Geometric median: the server moves to the point with the least sum of distances to the updates.

    By Weiszfeld's iteration: ``v <- sum_k b_k delta_k / sum_k b_k``, ``b_k = 1 / max(smoothing, |v - delta_k|)``,
    from the mean of the half that is nearest to the coordinate-wise median.

    Args:
        iterations: how often.
        smoothing: distances count as no less; above all of them the result is the equal mean.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> state = geometric_median().init({"w": torch.zeros(1)})
        >>> updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate((1.0, 2.0, 900.0))]
        >>> geometric_median().step(state, updates)["model"]["w"]
        tensor([2.])

    Source:
        K. Pillutla, S. M. Kakade, Z. Harchaoui, *Robust Aggregation for Federated Learning*, IEEE Transactions on Signal
        Processing 70, 2022, algorithm 2.

    Differs:
        Clients weigh the same; the paper weighs them by samples, which an attacker may claim any number of. The start:
        from the mean of updates some of which are far away it takes thousands of iterations, and an update, such as the
        coordinate-wise median of few may be, is hardly left again.
    """

    def aggregate(gathered: Gathered) -> Params:
        rows = {name: stacked(gathered, name) for name in gathered.updates[0].streams["delta"]}
        flat = torch.cat([t.reshape(len(t), -1) for t in rows.values()], dim=1)
        ordered, middle = flat.sort(dim=0).values, len(flat) // 2
        by_value = (ordered[middle] + ordered[~middle]) / 2
        nearest = (flat - by_value).norm(dim=1).argsort(stable=True)[: len(flat) // 2 + 1]
        point = flat[nearest].mean(0)
        for _ in range(iterations):
            weights = 1 / (flat - point).norm(dim=1).clamp(min=smoothing)
            point = (weights[:, None] * flat).sum(0) / weights.sum()
        pieces = point.split([t[0].numel() for t in rows.values()])
        found = {name: piece.view(t.shape[1:]) for (name, t), piece in zip(rows.items(), pieces, strict=True)}
        return as_sent(found, gathered)

    return Algorithm("Geometric median", server=ServerRule(aggregate=aggregate))

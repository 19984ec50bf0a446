"""FedExP."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, Gathered, ServerRule, equally
from fedadapt.params import Params, Streams, add, norm
from fedadapt.registry import register


@register("algorithm", "fedexp")
def fedexp(eps: Annotated[float, Field(gt=0)] = 1e-3) -> Algorithm:
    """FedExP: the server steps further the less the clients agree, by extrapolation.

    ``w <- w + max(1, sum_k |delta_k|^2 / (2 M (|delta|^2 + eps))) * delta``, delta the equal mean of M updates.

    Args:
        eps: keeps the rate small when the mean is; the larger, the closer to the equal mean.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = fedexp(eps=1.0)
        >>> state = technique.init({"w": torch.zeros(1)})
        >>> updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate((5.0, -3.0))]
        >>> technique.step(state, updates)["model"]["w"]  # (25 + 9) / (4 * (1 + 1)) = 4.25 times the mean 1
        tensor([4.2500])

    Source:
        D. Jhunjhunwala, S. Wang, G. Joshi, *FedExP: Speeding Up Federated Averaging via Extrapolation*, ICLR 2023,
        algorithm 1.

    Differs:
        The last model is used; the paper's experiments report the mean of the last two.
    """

    def optimise(state: Streams, delta: Params, gathered: Gathered) -> Streams:
        # Only what the server steps along counts: the deltas have statistics that move with the batches too.
        own = [{n: update.streams["delta"][n] for n in delta} for update in gathered.updates]
        spread = sum(norm(one) ** 2 for one in own)
        rate = max(1.0, spread / (2 * len(own) * (norm(delta) ** 2 + eps)))
        return {"model": add(state["model"], delta, alpha=rate)}

    return Algorithm("FedExP", server=ServerRule(weigh=equally, optimise=optimise, reads_updates=True))

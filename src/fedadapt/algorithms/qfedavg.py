"""q-FedAvg."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fedadapt.algorithms.algorithm import Algorithm, Gathered, LocalRule, ServerRule, Work
from fedadapt.algorithms.path import needs_fixed_statistics
from fedadapt.params import Params, norm, scale, weighted_mean
from fedadapt.registry import register

_SMALLEST_LOSS = 1e-10


@register("algorithm", "qfedavg")
def qfedavg(q: Annotated[float, Field(ge=0, le=10)] = 0.2) -> Algorithm:
    """q-FedAvg: clients on whose samples the model does badly weigh more, so that accuracy is more even.

    ``w <- w + sum_k F_k^q L delta_k / sum_k (q F_k^(q - 1) |L delta_k|^2 + L F_k^q)``, where F_k is the loss of the
    model on client k's samples before it trains, and L one over the local rate.

    Args:
        q: how much fairness counts; 0 is the equal mean, and the source tries up to 5.

    Example:
        >>> from fedadapt.algorithms import Update
        >>> state, ones = qfedavg(q=1.0).init({"w": torch.zeros(1)}), {"delta": {"w": torch.ones(1)}}
        >>> update = Update(0, 1, 1, ones, {"start_loss": 2.0, "lr": 0.5})
        >>> qfedavg(q=1.0).step(state, [update])["model"]["w"]  # 2 * 2 * 1 / (4 + 2 * 2)
        tensor([0.5000])

    Source:
        T. Li, M. Sanjabi, A. Beirami, V. Smith, *Fair Resource Allocation in Federated Learning*, ICLR 2020,
        algorithm 2.

    Differs:
        Clients are asked uniformly, not by size. A loss counts as no less than 1e-10.
    """

    def aggregate(gathered: Gathered) -> Params:
        pairs, total = [], 0.0
        for update in gathered.updates:
            loss = update.scalars["start_loss"]
            lipschitz, delta = 1 / update.scalars["lr"], update.streams["delta"]
            pairs.append((loss**q * lipschitz, delta))
            total += q * loss ** (q - 1) * (lipschitz * norm(delta)) ** 2 + lipschitz * loss**q
        return scale(weighted_mean(pairs), sum(weight for weight, _ in pairs) / total)

    return Algorithm(
        "q-FedAvg",
        local=LocalRule(scalars={"start_loss": _start_loss, "lr": _rate}, measures_start=True),
        server=ServerRule(aggregate=aggregate),
        checks=(needs_fixed_statistics,),
    )


def _start_loss(work: Work) -> Float[Tensor, " K"]:
    if work.start_loss is None:
        raise ValueError("the loss before training was not measured")
    return work.start_loss.clamp(min=_SMALLEST_LOSS)


def _rate(work: Work) -> Float[Tensor, " K"]:
    return torch.full((len(work.num_steps),), work.lr, dtype=torch.float64)

"""Federated averaging with server momentum."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, Gathered, ServerRule
from fedadapt.params import Params, Streams, add, scale, zeros_like
from fedadapt.registry import register


@register("algorithm", "fedavgm")
def fedavgm(
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9, lr: Annotated[float, Field(gt=0)] = 1.0
) -> Algorithm:
    """FedAvgM: the server keeps the momentum of the mean updates.

    ``v <- momentum * v + delta``, ``w <- w + lr * v``, where delta is FedAvg's mean update.

    Args:
        momentum: of the server; 0 is FedAvg with a server rate.
        lr: the server's rate.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = fedavgm(momentum=0.5)
        >>> state, ones = technique.init({"w": torch.zeros(1)}), {"delta": {"w": torch.ones(1)}}
        >>> for _ in range(2):
        ...     state = technique.step(state, [Update(0, 1, 1, ones)])
        >>> state["model"]["w"]  # 1, then 1 + 0.5 more
        tensor([2.5000])

    Source:
        T.-M. H. Hsu, H. Qi, M. Brown, *Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification*, 2019, section 4.3.
    """

    def optimise(state: Streams, delta: Params, gathered: Gathered) -> Streams:
        del gathered
        velocity = add(delta, state["velocity"], alpha=momentum)
        return {"model": add(state["model"], scale(velocity, lr)), "velocity": velocity}

    rule = ServerRule(optimise=optimise, streams=lambda model: {"velocity": zeros_like(model)})
    return Algorithm("FedAvgM", server=rule)

"""FedBuff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import (
    Algorithm,
    Gathered,
    ServerRule,
    Setting,
    Update,
    add_delta,
    equally,
)
from fedadapt.algorithms.path import needs_fixed_statistics
from fedadapt.params import Params, Streams, scale
from fedadapt.registry import register


@register("algorithm", "fedbuff")
def fedbuff(
    buffer: Annotated[int, Field(ge=1)] = 5,
    exponent: Annotated[float, Field(ge=0)] = 0.5,
    lr: Annotated[float, Field(gt=0)] = 1.0,
) -> Algorithm:
    """FedBuff: clients come and go, and the server steps whenever a buffer of updates is full.

    ``w <- w + lr / K * sum_k (1 + s_k)^(-exponent) delta_k`` over the K updates of the buffer, where s_k is how many
    steps the server took since client k got its model. The run's cohort is how many clients are at work at a time.

    Args:
        buffer: updates a step; a round of the run is one step.
        exponent: how much old updates lose; 0 takes them at full weight.
        lr: the server's rate.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> state, ones = fedbuff().init({"w": torch.zeros(1)}), {"delta": {"w": torch.ones(1)}}
        >>> updates = [Update(0, 1, 1, ones), Update(1, 1, 1, ones, staleness=3)]
        >>> fedbuff().step(state, updates)["model"]["w"]  # (1 + 1 / sqrt(4)) / 2
        tensor([0.7500])

    Source:
        J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, *Federated Learning with Buffered
        Asynchronous Aggregation*, AISTATS 2022, algorithm 1, and section 5 for the weights.
    """

    def prepare(updates: Sequence[Update]) -> list[Update]:
        return [_discount(update, (1 + update.staleness) ** -exponent) for update in updates]

    def optimise(state: Streams, delta: Params, gathered: Gathered) -> Streams:
        return add_delta(state, scale(delta, lr), gathered)

    def fills(setting: Setting) -> str | None:
        if buffer <= setting.cohort:
            return None
        return (
            f"a buffer of {buffer} updates is not filled by {setting.cohort} clients at a time; "
            f"use algorithm.buffer of at most {setting.cohort}, or a larger cohort"
        )

    return Algorithm(
        "FedBuff",
        server=ServerRule(
            prepare=(prepare,),
            weigh=equally,
            optimise=add_delta if lr == 1 else optimise,
            buffer=buffer,
        ),
        checks=(fills, needs_fixed_statistics),
    )


def _discount(update: Update, factor: float) -> Update:
    if factor == 1:
        return update
    return replace(update, streams=update.streams | {"delta": scale(update.streams["delta"], factor)})

"""Norm clipping of updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, ServerRule, Update
from fedadapt.algorithms.path import needs_fixed_statistics
from fedadapt.params import norm, scale
from fedadapt.registry import register


@register("algorithm", "norm_clipping")
def norm_clipping(largest: Annotated[float, Field(gt=0)] = 1.0) -> Algorithm:
    """Norm clipping: an update longer than allowed is shortened, so that no client moves the model far.

    ``delta_k * min(1, largest / |delta_k|)``, before any aggregation.

    Args:
        largest: Euclidean norm of an update, over all its values.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = norm_clipping(largest=1.0)
        >>> state = technique.init({"w": torch.zeros(2)})
        >>> technique.step(state, [Update(0, 1, 1, {"delta": {"w": torch.tensor([3.0, 4.0])}})])["model"]["w"]
        tensor([0.6000, 0.8000])

    Source:
        Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, *Can You Really Backdoor Federated Learning?*, 2019, section 5.
    """

    def prepare(updates: Sequence[Update]) -> list[Update]:
        return [_clip(update, largest) for update in updates]

    return Algorithm("Norm clipping", server=ServerRule(prepare=(prepare,)), checks=(needs_fixed_statistics,))


def _clip(update: Update, largest: float) -> Update:
    length = norm(update.streams["delta"])
    if length <= largest:
        return update
    return replace(
        update, streams=update.streams | {"delta": scale(update.streams["delta"], largest / length)}
    )

"""FedOpt: the server takes an adaptive step along the mean update. FedAdagrad, FedYogi and FedAdam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedadapt.algorithms.algorithm import Algorithm, Gathered, ServerRule
from fedadapt.params import Params, Streams, zeros_like
from fedadapt.registry import register

Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Spread = Callable[[Tensor, Tensor], Tensor]
"""``(second moment, square of the update) -> second moment``."""


@register("algorithm", "fedadam")
def fedadam(lr: Positive = 0.01, beta1: Decay = 0.9, beta2: Decay = 0.99, tau: Positive = 1e-3) -> Algorithm:
    """FedAdam: the server takes a step of Adam along the mean update.

    ``m <- beta1 m + (1 - beta1) delta``, ``v <- beta2 v + (1 - beta2) delta^2``, ``w <- w + lr m / (sqrt(v) + tau)``.

    Args:
        lr: the server's rate: about how far a value moves in a round.
        beta1: how much of the mean is kept.
        beta2: how much of the second moment is kept.
        tau: how little adaptive it is. With ``beta1 = 0`` and ``lr = tau`` large it is FedAvg.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = fedadam(lr=0.1, beta1=0.5, beta2=0.75, tau=0.5)
        >>> state, ones = technique.init({"w": torch.zeros(1)}), {"delta": {"w": torch.ones(1)}}
        >>> technique.step(state, [Update(0, 1, 1, ones)])["model"]["w"]  # 0.1 * 0.5 / (0.5 + 0.5)
        tensor([0.0500])

    Source:
        S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan, *Adaptive
        Federated Optimization*, ICLR 2021, algorithm 2.

    Differs:
        The second moment starts at zero; the paper starts it at tau^2 or more. Updates are weighted by samples.
    """
    return _adaptive("FedAdam", lr, beta1, tau, lambda v, square: beta2 * v + (1 - beta2) * square)


@register("algorithm", "fedyogi")
def fedyogi(lr: Positive = 0.01, beta1: Decay = 0.9, beta2: Decay = 0.99, tau: Positive = 1e-3) -> Algorithm:
    """FedYogi: FedAdam whose second moment changes by no more than the square of the update.

    ``v <- v - (1 - beta2) delta^2 sign(v - delta^2)``, the rest as in `fedadam`.

    Args:
        lr: the server's rate: about how far a value moves in a round.
        beta1: how much of the mean is kept.
        beta2: how slowly the second moment follows.
        tau: how little adaptive it is.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = fedyogi(lr=0.1, beta1=0.5, beta2=0.75, tau=0.5)
        >>> state, ones = technique.init({"w": torch.zeros(1)}), {"delta": {"w": torch.ones(1)}}
        >>> technique.step(state, [Update(0, 1, 1, ones)])["second"]["w"]  # 0 - 0.25 * 1 * sign(-1)
        tensor([0.2500])

    Source:
        As `fedadam`.

    Differs:
        As `fedadam`.
    """
    return _adaptive(
        "FedYogi", lr, beta1, tau, lambda v, square: v - (1 - beta2) * square * (v - square).sign()
    )


@register("algorithm", "fedadagrad")
def fedadagrad(lr: Positive = 0.01, beta1: Decay = 0.0, tau: Positive = 1e-3) -> Algorithm:
    """FedAdagrad: FedAdam whose second moment is the sum of all squares so far.

    ``v <- v + delta^2``, the rest as in `fedadam`.

    Args:
        lr: the server's rate: how far a value moves in the first round.
        beta1: how much of the mean is kept.
        tau: how little adaptive it is.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = fedadagrad(lr=0.1, tau=1.0)
        >>> state, threes = technique.init({"w": torch.zeros(1)}), {"delta": {"w": torch.full((1,), 3.0)}}
        >>> technique.step(state, [Update(0, 1, 1, threes)])["model"]["w"]  # 0.1 * 3 / (3 + 1)
        tensor([0.0750])

    Source:
        As `fedadam`.

    Differs:
        As `fedadam`.
    """
    return _adaptive("FedAdagrad", lr, beta1, tau, lambda v, square: v + square)


def _adaptive(name: str, lr: float, beta1: float, tau: float, spread: Spread) -> Algorithm:
    def optimise(state: Streams, delta: Params, gathered: Gathered) -> Streams:
        del gathered
        first = {n: beta1 * state["first"][n] + (1 - beta1) * d for n, d in delta.items()}
        second = {n: spread(state["second"][n], d.square()) for n, d in delta.items()}
        model = {
            n: torch.add(t, first[n] / (second[n].sqrt() + tau), alpha=lr) for n, t in state["model"].items()
        }
        return {"model": model, "first": first, "second": second}

    def streams(model: Params) -> Streams:
        return {"first": zeros_like(model), "second": zeros_like(model)}

    return Algorithm(name, server=ServerRule(optimise=optimise, streams=streams))

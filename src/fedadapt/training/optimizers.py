"""Optimisers over stacked tensors: each client has its own state and its own rate.

The values of all trained tensors lie in one matrix, a client in each row, so a step is a few passes over it however
many tensors there are. A client whose rate is zero does not move. That is all it takes to let a client rest that is
out of steps: whatever its momentum holds, it takes no step again in this round.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fedadapt.params import Params, as_rows
from fedadapt.training.config import TrainConfig

Step = Callable[[Float[Tensor, "K P"], Params, Float[Tensor, " K"]], None]
"""``(rows, gradients, rates)``: changes `rows`, which hold what the gradients are of, in place."""


def make_optimizer(rows: Float[Tensor, "K P"], config: TrainConfig) -> Step:
    """A fresh optimiser for the values of K clients, by the name in `config`."""
    return _sgd(rows, config) if config.optimizer == "sgd" else _adamw(rows, config)


def clip(gradients: Params, largest: float) -> Params:
    """Scales each client's gradients so that their joint norm is at most `largest`."""
    factor = (largest / joint_norms(gradients).clamp(min=1e-12)).clamp(max=1.0)
    return {name: gradient * across(factor, gradient) for name, gradient in gradients.items()}


def joint_norms(stacked: Params) -> Float[Tensor, " K"]:
    """The Euclidean norm of all values of each client together."""
    return torch.as_tensor(sum(t.reshape(len(t), -1).square().sum(1) for t in stacked.values())).sqrt()


def across(values: Float[Tensor, " K"], tensor: Tensor) -> Tensor:
    """One value a client, shaped to multiply a stacked tensor."""
    return values.view(-1, *[1] * (tensor.ndim - 1))


def _sgd(rows: Tensor, config: TrainConfig) -> Step:
    """Stochastic gradient descent, ``v = momentum * v + g + decay * w``, ``w = w - rate * v``."""
    velocity = torch.zeros_like(rows)

    def step(rows: Tensor, gradients: Params, rates: Tensor) -> None:
        gradient = as_rows(gradients)
        if config.weight_decay:
            gradient.add_(rows, alpha=config.weight_decay)
        velocity.mul_(config.momentum).add_(gradient)
        rows.addcmul_(velocity, rates[:, None], value=-1.0)

    return step


def _adamw(rows: Tensor, config: TrainConfig) -> Step:
    """Adam with decoupled weight decay.

    Source: I. Loshchilov, F. Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019, algorithm 2.
    """
    first, second = torch.zeros_like(rows), torch.zeros_like(rows)
    beta1, beta2 = config.betas
    count = 0

    def step(rows: Tensor, gradients: Params, rates: Tensor) -> None:
        nonlocal count
        count += 1
        gradient = as_rows(gradients)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        spread = (second / (1 - beta2**count)).sqrt_().add_(1e-8)
        direction = first.div(spread).div_(1 - beta1**count)
        if config.weight_decay:
            direction.add_(rows, alpha=config.weight_decay)
        rows.addcmul_(direction, rates[:, None], value=-1.0)

    return step

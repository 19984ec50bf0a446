"""Optimisers over stacked tensors: each client has its own state and its own rate.

A client whose rate is zero does not move. That is all it takes to let a client rest that is out of steps:
whatever its momentum holds, it takes no step again in this round.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fedadapt.params import Params, zeros_like
from fedadapt.training.config import TrainConfig

Step = Callable[[Params, Params, Float[Tensor, " K"]], None]
"""``(params, gradients, rates)``: changes `params` in place."""


def make_optimizer(params: Params, config: TrainConfig) -> Step:
    """A fresh optimiser for stacked `params`, by the name in `config`."""
    return _sgd(params, config) if config.optimizer == "sgd" else _adamw(params, config)


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


def _sgd(params: Params, config: TrainConfig) -> Step:
    """Stochastic gradient descent, ``v = momentum * v + g + decay * w``, ``w = w - rate * v``."""
    velocity = zeros_like(params)

    def step(params: Params, gradients: Params, rates: Tensor) -> None:
        for name, param in params.items():
            gradient, moving = gradients[name], velocity[name]
            if config.weight_decay:
                gradient = gradient.add(param, alpha=config.weight_decay)
            moving.mul_(config.momentum).add_(gradient)
            param.addcmul_(moving, across(rates, param), value=-1.0)

    return step


def _adamw(params: Params, config: TrainConfig) -> Step:
    """Adam with decoupled weight decay.

    Source: I. Loshchilov, F. Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019, algorithm 2.
    """
    first, second = zeros_like(params), zeros_like(params)
    beta1, beta2 = config.betas
    count = 0

    def step(params: Params, gradients: Params, rates: Tensor) -> None:
        nonlocal count
        count += 1
        for name, param in params.items():
            gradient = gradients[name]
            first[name].lerp_(gradient, 1 - beta1)
            second[name].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            spread = (second[name] / (1 - beta2**count)).sqrt_().add_(1e-8)
            direction = first[name].div(spread).div_(1 - beta1**count)
            if config.weight_decay:
                direction.add_(param, alpha=config.weight_decay)
            param.addcmul_(direction, across(rates, param), value=-1.0)

    return step

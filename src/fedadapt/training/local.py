"""The one local loop: K clients take their steps together over one frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from fedadapt.data.augment import normalise
from fedadapt.data.batches import Batch
from fedadapt.errors import ClientError
from fedadapt.params import Params, is_finite
from fedadapt.training.config import TrainConfig
from fedadapt.training.optimizers import clip, make_optimizer

Correct = Callable[[Params, Params], Params]
"""``(gradients, params) -> gradients``, all stacked: what an algorithm adds to plain descent."""


@runtime_checkable
class Model(Protocol):
    """What the loop needs of a model: logits of client-major images under stacked tensors."""

    moving: list[str]

    def __call__(self, params: Params, images: Tensor, *, mask: Tensor | None, training: bool) -> Tensor: ...


@dataclass(frozen=True)
class Trained:
    """What local training gives back.

    Args:
        params: stacked, after the last step.
        num_steps: steps each client took.
        loss: mean over each client's samples and steps; NaN never, 0 without steps.
    """

    params: Params
    num_steps: Int64[Tensor, " K"]
    loss: Float[Tensor, " K"]


def train(
    model: Model,
    start: Params,
    batches: Iterable[Batch],
    config: TrainConfig,
    *,
    lr: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    correct: Correct | None = None,
) -> Trained:
    """Trains K clients from `start`.

    The loss of a client is the mean cross-entropy over its real samples, so padding changes nothing; clients
    share no trained tensor, so the sum of their losses has each client's own gradient. With frozen statistics
    a client's result does not depend on who else is in the batch.

    Args:
        model: computes in its own type and on its own device.
        start: all tensors that change, stacked; not modified.
        batches: the steps of the cohort.
        config: how to step.
        lr: the rate in this round.
        mean: of the pixels, for normalisation.
        std: likewise.
        correct: applied to the gradients before clipping.

    Raises:
        ClientError: a loss or a weight became infinite or NaN.
    """
    params = {name: tensor.clone() for name, tensor in start.items()}
    trained = {name: tensor for name, tensor in params.items() if name not in model.moving}
    some = next(iter(params.values()))
    clients, device = some.shape[0], some.device
    step = make_optimizer(trained, config)
    num_steps = torch.zeros(clients, dtype=torch.int64, device=device)
    losses, samples = torch.zeros(clients, device=device), torch.zeros(clients, device=device)
    for batch in batches:
        images = normalise(batch.images.to(device), mean, std, torch.float32)
        labels, mask = batch.labels.to(device), batch.mask.to(device)
        for tensor in trained.values():
            tensor.requires_grad_()
        logits = model(params, images, mask=mask, training=True)
        each = functional.cross_entropy(
            logits, labels.reshape(-1), reduction="none", label_smoothing=config.label_smoothing
        ).view(mask.shape)
        count = mask.sum(1)
        loss = (each * mask).sum(1) / count.clamp(min=1)
        gradients = dict(zip(trained, torch.autograd.grad(loss.sum(), list(trained.values())), strict=True))
        with torch.no_grad():
            for tensor in trained.values():
                tensor.requires_grad_(False)
            if correct is not None:
                gradients = correct(gradients, trained)
            if config.clip_norm is not None:
                gradients = clip(gradients, config.clip_norm)
            active = count > 0
            step(trained, gradients, torch.where(active, lr, 0.0))
            num_steps += active
            losses += loss.detach() * count
            samples += count
    mean_loss = losses / samples.clamp(min=1)
    if not (bool(torch.isfinite(mean_loss).all()) and is_finite(params)):
        raise ClientError(
            f"training diverged: the loss or a weight is not finite at train.lr={lr:g}; lower it or set train.clip_norm"
        )
    return Trained(params, num_steps, mean_loss)

"""The one local loop: K clients take their steps together over one frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from fedadapt.data.augment import normalise
from fedadapt.data.batches import Batch
from fedadapt.errors import ClientError
from fedadapt.params import Params, as_rows, from_rows, is_finite
from fedadapt.training.config import TrainConfig
from fedadapt.training.optimizers import clip, make_optimizer

Gradient = Callable[[Params], Params]
"""From trained tensors, stacked, to the gradients of the loss of the batch at hand, there."""


@runtime_checkable
class Model(Protocol):
    """What the loop needs of a model: logits of client-major images under stacked tensors."""

    moving: list[str]

    def __call__(
        self,
        params: Params,
        images: Tensor,
        *,
        mask: Tensor | None,
        training: bool,
        noise: Sequence[int] = (),
    ) -> Tensor: ...

    def with_features(
        self,
        params: Params,
        images: Tensor,
        *,
        mask: Tensor | None,
        training: bool,
        noise: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Logits, and the features that they are made from."""
        ...


@dataclass(frozen=True)
class Beside:
    """A second set of tensors, trained on the same batches with an optimiser of its own.

    Args:
        start: stacked; what the model has besides is that of the first set.
        gradient: ``(gradient, second, first) -> gradients`` of the second set.
    """

    start: Params
    gradient: Callable[[Gradient, Params, Params], Params]


@dataclass(frozen=True)
class Hooks:
    """Where an algorithm takes part in local training; by default nowhere.

    Args:
        gradient: from the gradient of the loss to that which is followed.
        adjust: applied to the logits before the loss.
        references: whole models, stacked, that `contrast` looks at.
        contrast: ``(features, those of each reference) -> penalty`` of each sample, added to its loss.
        beside: a second set of tensors.
        frozen: names that rest.
    """

    gradient: Callable[[Gradient], Gradient] = lambda gradient: gradient
    adjust: Callable[[Float[Tensor, "K B D"]], Float[Tensor, "K B D"]] | None = None
    references: Sequence[Params] = ()
    contrast: Callable[[Float[Tensor, "K B C"], list[Tensor]], Float[Tensor, "K B"]] | None = None
    beside: Beside | None = None
    frozen: Collection[str] = ()


@dataclass(frozen=True)
class Trained:
    """What local training gives back.

    Args:
        params: stacked, after the last step.
        num_steps: steps each client took.
        loss: mean over each client's samples and steps; NaN never, 0 without steps.
        beside: the second set of tensors, if there was one.
    """

    params: Params
    num_steps: Int64[Tensor, " K"]
    loss: Float[Tensor, " K"]
    beside: Params | None = None


def train(
    model: Model,
    start: Params,
    batches: Iterable[Batch],
    config: TrainConfig,
    *,
    lr: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    hooks: Hooks = Hooks(),
    inputs: Callable[[Batch], Tensor] | None = None,
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
        hooks: what an algorithm does; gradients are clipped after it.
        inputs: what the model is given of a batch; None for its images, normalised.

    Raises:
        ClientError: a loss or a weight became infinite or NaN.
    """
    still = {*model.moving, *hooks.frozen}
    params, trained, rows = _laid_out(start, still)
    some = next(iter(params.values()))
    clients, device = some.shape[0], some.device
    step = make_optimizer(rows, config)
    second: Params = {}
    if hooks.beside is not None:
        second, second_trained, second_rows = _laid_out(hooks.beside.start, still)
        second_step = make_optimizer(second_rows, config)
    num_steps = torch.zeros(clients, dtype=torch.int64, device=device)
    losses, samples = torch.zeros(clients, device=device), torch.zeros(clients, device=device)
    with torch.no_grad():
        for batch in batches:
            images = (
                normalise(batch.images.to(device), mean, std, torch.float32)
                if inputs is None
                else inputs(batch)
            )
            loss = _Loss(
                model, images, batch.labels.to(device), batch.mask.to(device), batch.noise, config, hooks
            )
            first = loss.at(params, trained)
            gradients = hooks.gradient(first)(trained)
            active = loss.count > 0
            rates = torch.where(active, lr, 0.0)
            losses += loss.value * loss.count
            samples += loss.count
            if hooks.beside is not None:
                # Before the first set steps: both look at each other as they were. Statistics of the first set
                # that the second one has not are looked at, and must not move once more.
                around = {n: t.clone() if n in model.moving else t for n, t in params.items()}
                direction = hooks.beside.gradient(
                    loss.at(around | second, second_trained), second_trained, trained
                )
                second_step(second_rows, _clipped(direction, config), rates)
            step(rows, _clipped(gradients, config), rates)
            num_steps += active
    mean_loss = losses / samples.clamp(min=1)
    if not (bool(torch.isfinite(mean_loss).all()) and is_finite(params) and is_finite(second)):
        raise ClientError(
            f"training diverged: the loss or a weight is not finite at train.lr={lr:g}; lower it or set train.clip_norm"
        )
    return Trained(params, num_steps, mean_loss, second if hooks.beside is not None else None)


def _laid_out(start: Params, still: Collection[str]) -> tuple[Params, Params, Tensor]:
    """A copy of `start`; of it that which is trained; and the matrix that the latter are views of."""
    moved = {name: tensor for name, tensor in start.items() if name not in still}
    rows = as_rows(moved)
    trained = from_rows(rows, moved)
    return {name: trained[name] if name in trained else t.clone() for name, t in start.items()}, trained, rows


def _clipped(gradients: Params, config: TrainConfig) -> Params:
    return gradients if config.clip_norm is None else clip(gradients, config.clip_norm)


class _Loss:
    """The loss of one batch, and its gradient wherever it is asked for.

    Attributes:
        count: real samples of each client.
        value: mean loss of each client where it was first asked for.
    """

    value: Float[Tensor, " K"]

    def __init__(
        self,
        model: Model,
        images: Tensor,
        labels: Int64[Tensor, "K B"],
        mask: Tensor,
        noise: Sequence[int],
        config: TrainConfig,
        hooks: Hooks,
    ) -> None:
        self._model, self._images, self._labels, self._mask = model, images, labels, mask
        self._noise, self._config, self._hooks = noise, config, hooks
        # Where all that moves is to stay as it came, statistics are looked at as in evaluation.
        self._moves = not set(model.moving) <= set(hooks.frozen)
        self._seen = False
        self.count = mask.sum(1)
        self._references = [
            self._by_client(model.with_features(reference, images, mask=None, training=False)[1])
            for reference in hooks.references
        ]

    def at(self, whole: Params, own: Params) -> Gradient:
        """The gradient as a function of the tensors that have one.

        Args:
            whole: all tensors that change.
            own: those of `whole` that are trained. Moving statistics move when the gradient is taken right
                there; anywhere else they are looked at and put back.
        """

        def gradient(point: Params) -> Params:
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in point.items()}
            rest = {
                name: tensor if point is own else tensor.clone()
                for name, tensor in whole.items()
                if name not in point
            }
            with torch.enable_grad():
                loss = self._mean(rest | leaves)
                # What the network has and does not use has a gradient of zero.
                found = torch.autograd.grad(
                    loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
                )
            if not self._seen:
                self.value, self._seen = loss.detach(), True
            return dict(zip(leaves, found, strict=True))

        return gradient

    def _mean(self, params: Params) -> Float[Tensor, " K"]:
        """Each client's mean loss over its real samples."""
        shape, contrast, mask, noise = self._mask.shape, self._hooks.contrast, self._mask, self._noise
        if contrast is None:
            logits = self._model(params, self._images, mask=mask, training=self._moves, noise=noise)
        else:
            logits, features = self._model.with_features(
                params, self._images, mask=mask, training=self._moves, noise=noise
            )
        if self._hooks.adjust is not None:
            logits = self._hooks.adjust(self._by_client(logits)).flatten(0, 1)
        each = functional.cross_entropy(
            logits, self._labels.reshape(-1), reduction="none", label_smoothing=self._config.label_smoothing
        ).view(shape)
        if contrast is not None:
            each = each + contrast(self._by_client(features), self._references)
        return (each * self._mask).sum(1) / self.count.clamp(min=1)

    def _by_client(self, values: Float[Tensor, "N C"]) -> Float[Tensor, "K B C"]:
        return values.unflatten(0, self._mask.shape)

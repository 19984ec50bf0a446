"""How good a model is, globally and for each client."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from fedadapt.data.augment import normalise
from fedadapt.data.batches import PADDING
from fedadapt.data.dataset import Split
from fedadapt.params import Params
from fedadapt.training.local import Model

BATCH_IMAGES = 500
"""Images in one forward pass, over all clients together."""


def evaluate(
    model: Model, params: Params, split: Split, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, float]:
    """``accuracy`` (0..1) and mean cross-entropy ``loss`` of one set of tensors, without client axis."""
    stacked = {name: tensor[None] for name, tensor in params.items()}
    indices = [torch.arange(len(split))]
    right, loss = _measure(model, stacked, split, indices, mean, std)
    return {"accuracy": float(right[0]) / len(split), "loss": float(loss[0]) / len(split)}


def evaluate_clients(
    model: Model,
    stacked: Params,
    split: Split,
    indices: Sequence[Int64[Tensor, " _"]],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[float | None]:
    """Accuracy of each client's tensors on its own samples of `split`; None for a client without any."""
    right, _ = _measure(model, stacked, split, indices, mean, std)
    return [float(r) / len(own) if len(own) else None for r, own in zip(right, indices, strict=True)]


def mean_losses(
    model: Model,
    stacked: Params,
    split: Split,
    indices: Sequence[Int64[Tensor, " _"]],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Tensor, " K"]:
    """Mean cross-entropy of each client's tensors on its own samples of `split`; 0 for a client without any."""
    _, losses = _measure(model, stacked, split, indices, mean, std)
    return losses / torch.tensor([max(1, len(own)) for own in indices])


def _measure(
    model: Model,
    stacked: Params,
    split: Split,
    indices: Sequence[Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Right answers and summed losses of each client on the samples at its `indices`."""
    device = next(iter(stacked.values())).device
    rows = torch.nn.utils.rnn.pad_sequence(list(indices), batch_first=True, padding_value=PADDING)
    right, losses = torch.zeros(len(indices)), torch.zeros(len(indices))
    width = max(1, BATCH_IMAGES // len(indices))
    with torch.inference_mode():
        for here in rows.split(width, dim=1):
            mask = here != PADDING
            flat = here.clamp(min=0).reshape(-1)
            images = normalise(split.images[flat].to(device), mean, std, torch.float32)
            logits = model(stacked, images, mask=None, training=False).cpu()
            labels = split.labels[flat]
            right += ((logits.argmax(1) == labels).view(mask.shape) & mask).sum(1)
            losses += (
                functional.cross_entropy(logits, labels, reduction="none").view(mask.shape) * mask
            ).sum(1)
    return right, losses

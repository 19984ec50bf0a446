"""How good a model is, globally and for each client."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedadapt.data.augment import normalise
from fedadapt.data.batches import PADDING
from fedadapt.data.dataset import Split
from fedadapt.params import Params
from fedadapt.training.local import Model
from fedadapt.training.metrics import LOWER_IS_BETTER, Counts, count, scores

BATCH_IMAGES = 500
"""Images in one forward pass, over all clients together."""

Scores = Mapping[str, float]
"""Metrics by name, those that are defined; see `fedadapt.training.metrics.scores`."""


def evaluate(
    model: Model, params: Params, split: Split, mean: tuple[float, ...], std: tuple[float, ...]
) -> Scores:
    """How good one set of tensors, without client axis, is on a split; ``loss`` is the mean cross-entropy."""
    stacked = {name: tensor[None] for name, tensor in params.items()}
    (found,) = evaluate_clients(model, stacked, split, [torch.arange(len(split))], mean, std)
    return found


def evaluate_clients(
    model: Model,
    stacked: Params,
    split: Split,
    indices: Sequence[Int64[Tensor, " _"]],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[Scores]:
    """How good each client's tensors are on its own samples of `split`; nothing for a client without any."""
    found = scores(_measure(model, stacked, split, indices, mean, std))
    rows = torch.stack(list(found.values()), dim=1).tolist()
    return [
        {name: value for name, value in zip(found, row, strict=True) if len(own) and is_known(name, value)}
        for row, own in zip(rows, indices, strict=True)
    ]


def over_clients(measured: Sequence[Scores]) -> dict[str, float]:
    """Every metric over the clients that have it: ``client_<metric>_mean``, ``_worst``, ``_std`` and ``_iqr``.

    The worst is the mean of the worst tenth, rounded down, but of one client at least. The spread is the standard
    deviation of the clients at hand (not of a population that they are drawn from) and the distance between their
    quartiles, which are interpolated linearly.

    Example:
        >>> found = over_clients([{"accuracy": 0.5}, {"accuracy": 1.0}, {}])
        >>> {name: round(value, 3) for name, value in found.items()}
        {'client_accuracy_mean': 0.75, 'client_accuracy_worst': 0.5, 'client_accuracy_std': 0.25, 'client_accuracy_iqr': 0.25}
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for own in measured for name in own):
        values = torch.tensor([own[name] for own in measured if name in own], dtype=torch.float64)
        ranked = values.sort(descending=name in LOWER_IS_BETTER).values
        low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
        found |= {
            f"client_{name}_mean": float(values.mean()),
            f"client_{name}_worst": float(ranked[: max(1, len(ranked) // 10)].mean()),
            f"client_{name}_std": float(values.std(correction=0)),
            f"client_{name}_iqr": float(high - low),
        }
    return found


def mean_losses(
    model: Model,
    stacked: Params,
    split: Split,
    indices: Sequence[Int64[Tensor, " _"]],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Tensor, " K"]:
    """Mean cross-entropy of each client's tensors on its own samples of `split`; 0 for a client without any."""
    losses = _measure(model, stacked, split, indices, mean, std).loss
    return losses / torch.tensor([max(1, len(own)) for own in indices])


def _measure(
    model: Model,
    stacked: Params,
    split: Split,
    indices: Sequence[Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Counts:
    """What the clients' tensors say of the samples at each one's `indices`."""
    device = next(iter(stacked.values())).device
    rows = torch.nn.utils.rnn.pad_sequence(list(indices), batch_first=True, padding_value=PADDING)
    width = max(1, BATCH_IMAGES // len(indices))
    counted = []
    with torch.inference_mode():
        for here in rows.split(width, dim=1):
            flat = here.clamp(min=0).reshape(-1)
            images = normalise(split.images[flat].to(device), mean, std, torch.float32)
            logits = model(stacked, images, mask=None, training=False).cpu()
            labels = split.labels[flat].view_as(here)
            counted.append(count(logits.unflatten(0, here.shape), labels, here != PADDING))
        return reduce(add, counted)


def is_known(name: str, value: float) -> bool:
    """Whether a metric is there to be told: a class may be missing, but a loss that is no number is a finding."""
    return name in ("loss", "calibration_error") or not math.isnan(value)

"""What a data set is, once loaded: resident uint8 images, integer labels, and their splits."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from fedadapt.errors import DataError


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Args:
        images: uint8, channels first.
        labels: class numbers from 0.
        domains: where each image comes from (camera, hospital, style), numbered from 0, if that is known.
        ids: whose each image is (writer, patient, device), numbered from 0, if that is known.

    Raises:
        DataError: the columns do not have the same length.
    """

    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, " N"]
    domains: Int64[Tensor, " N"] | None = None
    ids: Int64[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        for name, column in (("labels", self.labels), ("domains", self.domains), ("ids", self.ids)):
            if column is not None and len(column) != len(self.images):
                raise DataError(f"a split has {len(self.images)} images but {len(column)} {name}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Int64[Tensor, " n"]) -> Split:
        """The images at `indices`, in that order."""
        known = [None if column is None else column[indices] for column in (self.domains, self.ids)]
        return Split(self.images[indices], self.labels[indices], *known)


def join(first: Split, second: Split) -> Split:
    """The images of both with their labels, in this order; nothing else of them."""
    return Split(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]))


@dataclass(frozen=True)
class Dataset:
    """A classification task.

    Args:
        name: for people.
        train: what clients hold; with all splits empty the samples are elsewhere.
        test: the global test set, which no client trains on.
        class_names: one name a class; their number is the number of classes.
        validation: a split for choosing hyper-parameters, if the set has one.
        mean: of the train images by channel, 0..1; computed if empty and there are any.
        std: likewise.

    Raises:
        DataError: a split is empty where others are not or has images of another shape, or a label is not a class.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    validation: Split | None = None
    mean: tuple[float, ...] = field(default=())
    std: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        splits = {"train": self.train, "test": self.test, "validation": self.validation}
        if not any(splits.values()):
            return
        for name, split in splits.items():
            if split is None:
                continue
            if len(split) == 0:
                raise DataError(
                    f"data set {self.name!r} has an empty {name} split; it needs at least one image"
                )
            shape, wanted = ("x".join(map(str, s.images.shape[1:])) for s in (split, self.train))
            if shape != wanted:
                raise DataError(
                    f"data set {self.name!r} has {name} images of {shape}, but train images of {wanted}; make all of one shape"
                )
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(
                    f"data set {self.name!r} has {name} labels from {low} to {high}, "
                    f"but {self.num_classes} classes are numbered 0 to {self.num_classes - 1}"
                )
        if not self.mean:
            mean, std = channel_moments(self.train.images)
            object.__setattr__(self, "mean", mean)
            object.__setattr__(self, "std", std)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def channel_moments(images: UInt8[Tensor, "N C H W"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1.

    Counts how often each of the 256 values occurs, so the moments are exact and need no float copy of the
    images. A constant channel has a standard deviation of 1/255, so that dividing by it is safe.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1).long(), minlength=256).double()
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        stds.append(max(variance**0.5, 1 / 255))
    return tuple(means), tuple(stds)

"""Parts of a split that are set aside: test and validation splits, and each client's own test samples."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from fedadapt.data.dataset import Split
from fedadapt.errors import ConfigError, DataError
from fedadapt.seeds import Seeds

Fraction = Annotated[float, Field(gt=0, lt=1)]
"""A share that leaves something on both sides."""


def hold_out(
    indices: Int64[Tensor, " n"], labels: Int64[Tensor, " N"], fraction: float, generator: torch.Generator
) -> tuple[Int64[Tensor, " a"], Int64[Tensor, " b"]]:
    """Divides samples into those to train on and those to hold out, stratified by label.

    ``b = round(fraction * n)`` samples are held, at least one and at most ``n - 1``. Of a class with ``n_c``
    samples ``b * n_c / n`` are held, rounded down; what is then missing goes to the classes with the largest
    remainders, ties at random. Rounding by class alone would hold nothing of a client with few of each.

    Args:
        indices: which samples to divide.
        labels: of the whole split that `indices` points into.
        fraction: the share to hold, from 0 (none) to below 1.
        generator: draws which samples, and the ties.

    Returns:
        The indices to train on and the indices held, each ascending. A single sample is kept for training.

    Raises:
        ConfigError: `fraction` is out of range.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"the fraction to hold out is {fraction}; it must be from 0 to below 1")
    total = len(indices)
    held = min(max(round(fraction * total), 1), total - 1) if fraction and total > 1 else 0
    shuffled = indices[torch.randperm(total, generator=generator)]
    shuffled = shuffled[torch.argsort(labels[shuffled], stable=True)]
    _, counts = torch.unique_consecutive(labels[shuffled], return_counts=True)
    # Whole numbers throughout: a remainder in floats would break ties by rounding error.
    quota, remainder = counts * held // max(total, 1), counts * held % max(total, 1)
    order = torch.randperm(len(counts), generator=generator)
    order = order[torch.argsort(remainder[order], descending=True, stable=True)]
    quota[order[: held - int(quota.sum())]] += 1
    starts = counts.cumsum(0) - counts
    rank = torch.arange(total) - starts.repeat_interleave(counts)
    is_held = rank < quota.repeat_interleave(counts)
    return shuffled[~is_held].sort().values, shuffled[is_held].sort().values


def split_off(split: Split, fraction: float, seeds: Seeds, purpose: str) -> tuple[Split, Split]:
    """Divides a split in two, stratified by label, and by domain where domains are known.

    Args:
        split: at least two images.
        fraction: the share of the second part, above 0 and below 1.
        seeds: the draw depends on them and on `purpose` alone.
        purpose: a name for the draw, such as ``"validation"``.

    Returns:
        The rest, and the part that is held out.

    Raises:
        ConfigError: `fraction` is out of range.
        DataError: there is nothing to hold out.
    """
    strata = split.labels
    if split.domains is not None and len(split):
        strata = split.domains * (split.labels.max() + 1) + split.labels
    rest, held = hold_out(torch.arange(len(split)), strata, fraction, seeds.torch(purpose))
    if not len(held):
        raise DataError(
            f"cannot set aside {fraction} of {len(split)} images for {purpose}; "
            "it takes a fraction above 0 and at least two images"
        )
    return split.take(rest), split.take(held)

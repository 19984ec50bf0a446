"""No samples, but what they are like: for the server of a federation whose data are at its sites alone."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.images import Size
from fedadapt.errors import ConfigError
from fedadapt.registry import register

Means = tuple[Annotated[float, Field(ge=0, le=1)], ...]
Deviations = tuple[Annotated[float, Field(gt=0, le=1)], ...]


@register("source", "elsewhere")
def elsewhere(
    *,
    class_names: Annotated[tuple[str, ...], Field(min_length=2)],
    size: Size,
    channels: Literal[1, 3] = 3,
    mean: Means = (),
    std: Deviations = (),
) -> Dataset:
    """Classes and shape of images, and no sample: with it a server leads a federation, and its sites measure.

    Args:
        class_names: of the labels, in the order of their numbers; sites may call theirs otherwise.
        size: pixels of a side, which every site brings its images to.
        channels: of the images.
        mean: of the pixels by channel, 0..1; only for a backbone that does not bring its own.
        std: likewise.

    Raises:
        ConfigError: there is not one mean and one deviation of each channel, nor none of both.
    """
    if not (len(mean) == len(std) and len(mean) in (0, channels)):
        raise ConfigError(
            f"source 'elsewhere' has {len(mean)} mean and {len(std)} std for {channels} channels; set one of each for every "
            "channel, or leave both out"
        )
    nothing = Split(
        torch.zeros(0, channels, size, size, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    )
    return Dataset("elsewhere", nothing, nothing, class_names, mean=mean, std=std)

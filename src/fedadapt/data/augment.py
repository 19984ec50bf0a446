"""Flips, crops and normalisation of whole batches as tensors, each draw from a generator that is passed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Draws:
    """What was drawn for `N` images: where each crop starts and whether it is mirrored."""

    top: Int64[Tensor, " N"]
    left: Int64[Tensor, " N"]
    mirror: Bool[Tensor, " N"]

    def take(self, indices: Int64[Tensor, " n"]) -> Draws:
        """The draws at `indices`."""
        return Draws(self.top[indices], self.left[indices], self.mirror[indices])


@dataclass(frozen=True)
class Augment:
    """Random horizontal flips and random crops of the zero-padded image.

    Args:
        pad: pixels of padding on each side, and so the range of the crop; 0 crops nothing.
        flip: whether half of the images are mirrored. Leave it off where left and right carry meaning,
            as with digits.
    """

    pad: int = 4
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Draws for `count` images; the same generator state gives the same draws."""
        span = 2 * self.pad + 1
        top = torch.randint(span, (count,), generator=generator)
        left = torch.randint(span, (count,), generator=generator)
        mirror = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        return Draws(top, left, mirror)

    def apply(self, images: UInt8[Tensor, "N C H W"], draws: Draws) -> UInt8[Tensor, "N C H W"]:
        """The augmented images: crop and mirror are one gather from the padded batch."""
        if not self.pad and not self.flip:
            return images
        count, _, height, width = images.shape
        padded = functional.pad(images, (self.pad,) * 4)
        rows = draws.top[:, None] + torch.arange(height)
        across = torch.arange(width)
        columns = draws.left[:, None] + torch.where(draws.mirror[:, None], across.flip(0), across)
        return padded.permute(0, 2, 3, 1)[
            torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
        ].permute(0, 3, 1, 2)


def normalise(
    images: UInt8[Tensor, "N C H W"], mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Float[Tensor, "N C H W"]:
    """Scales bytes to 0..1, subtracts `mean` and divides by `std` by channel; channels-last in memory."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)[
        :, None, None
    ]
    return torch.addcmul(shift, images.float(), scale).to(dtype, memory_format=torch.channels_last)

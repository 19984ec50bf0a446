"""Where an adapter can sit: modules found by what they are, never by what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Site:
    """A convolution of the backbone, described by what an adapter has to match.

    Args:
        name: dotted name of the module.
        module: the convolution itself.
        padding: resolved to numbers, by axis.
    """

    name: str
    module: nn.Conv2d
    padding: tuple[int, int]

    @property
    def has_centre(self) -> bool:
        """Whether the kernel has a centre tap that sees the same pixels as a 1x1 of the same stride.

        That takes odd kernels and a padding of ``dilation * (kernel - 1) / 2`` on each axis.
        """
        sizes, dilations = self.module.kernel_size, self.module.dilation
        return all(
            k % 2 == 1 and p == d * (k - 1) // 2
            for k, d, p in zip(sizes, dilations, self.padding, strict=True)
        )

    def describe(self) -> dict[str, Any]:
        """What a manifest records of a site."""
        conv = self.module
        return {
            "name": self.name,
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "kernel_size": list(conv.kernel_size),
            "stride": list(conv.stride),
            "groups": conv.groups,
        }


def find_sites(module: nn.Module) -> list[Site]:
    """Every plain convolution of `module`, in the order of its forward definition.

    Subclasses of ``nn.Conv2d`` are left out on purpose: weight-standardised and dynamically padded
    convolutions compute something else than their weight says.
    """
    return [
        Site(name, child, _padding(child))
        for name, child in module.named_modules()
        if type(child) is nn.Conv2d
    ]


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        height, width = (d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
        return (height, width)
    height, width = (int(side) for side in conv.padding)
    return (height, width)

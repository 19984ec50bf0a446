"""What families of networks need besides: which convolutions get branches where 3x3 is not the rule."""

from __future__ import annotations

from fnmatch import fnmatchcase

PRESETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "*convnext*": ((7,), (1,)),
    "*mobilenet*": ((3, 5), (1,)),
    "*efficientnet*": ((3, 5), (1,)),
}
"""Kernels by the name of a backbone: for branches as wide as their layer, and for thin ones.

Here convolutions over neighbours are depthwise, and pointwise ones mix channels. A full matrix beside a depthwise
layer is a value a channel, beside a pointwise one as much as the layer itself; a thin branch has nothing to go
through beside a depthwise layer.
"""


def kernels(backbone: str, *, thin: bool) -> tuple[int, ...]:
    """The square kernels that get branches in networks of that name; empty if no family is known by it.

    Example:
        >>> kernels("MobileNetV3", thin=True), kernels("resnet26", thin=True)
        ((1,), ())
    """
    return next((pair[thin] for glob, pair in PRESETS.items() if fnmatchcase(backbone.lower(), glob)), ())

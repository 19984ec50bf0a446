"""Any network of the user's own as a backbone."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from fedadapt.backbones.backbone import Backbone, finish
from fedadapt.errors import BackboneError


def wrap(
    module: nn.Module,
    num_classes: int,
    generator: torch.Generator,
    *,
    image: tuple[int, int, int],
    head: str | None = None,
    name: str | None = None,
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Backbone:
    """A copy of `module` as a backbone, with a fresh head.

    Args:
        module: takes images ``[N, C, H, W]`` and returns ``[N, any]``.
        num_classes: outputs of the fresh head.
        generator: draws the head.
        image: channels, height and width of an image that it takes.
        head: dotted name of the linear layer that makes the outputs; None for the last one.
        name: for people; None for the name of the class.
        moments: mean and standard deviation of the pixels (0..1) it was trained on, by channel.

    Raises:
        BackboneError: there is no linear layer that could be the head, or the module cannot be copied.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 7))
        >>> backbone = wrap(net, 2, torch.Generator().manual_seed(0), image=(3, 2, 2))
        >>> backbone.head, backbone.module(torch.zeros(5, 3, 2, 2)).shape
        ('3', torch.Size([5, 2]))
    """
    name = name or type(module).__name__
    lazy = next((n for n, p in module.named_parameters() if isinstance(p, UninitializedParameter)), None)
    if lazy is not None:
        raise BackboneError(f"backbone {name!r} has no shape yet at {lazy!r}; run an image through it first")
    try:
        own = copy.deepcopy(module)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise BackboneError(
            f"backbone {name!r} cannot be copied ({reason}); use torch.nn.utils.parametrizations in place of hooks that "
            "compute weights, such as torch.nn.utils.weight_norm"
        ) from error
    return finish(name, own, head or last_linear(name, module), num_classes, generator, moments, image)


def last_linear(name: str, module: nn.Module) -> str:
    """The dotted name of the last linear layer.

    Raises:
        BackboneError: there is none.
    """
    linear = [place for place, child in module.named_modules() if type(child) is nn.Linear]
    if not linear:
        raise BackboneError(f"backbone {name!r} has no nn.Linear that could be its head; end it with one")
    return linear[-1]

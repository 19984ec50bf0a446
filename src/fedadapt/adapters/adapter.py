"""What an adapter is: which tensors it trains, where it sits, and the module that it puts there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.params import Group

Build = Callable[[Site, torch.Generator], nn.Module]
"""``(site, generator) -> module`` that takes the layer's place.

The layer is its ``base``, the branch its ``adapter``, whose trained tensors have a client axis of length 1. The
generator is the site's own: what it draws depends on the seed and the name of the site, on nothing else.
"""

Fold = Callable[[Site, Tensor, Tensor | None, dict[str, Tensor]], tuple[Tensor, Tensor | None]]
"""``(site, weight, bias, branch) -> (weight, bias)`` of the plain layer that computes what layer and branch do.

`branch` has the tensors of the branch without client axis.
"""


@dataclass(frozen=True)
class Branches:
    """What an adapter puts beside the layers of a backbone.

    Args:
        kinds: of layers it is made for, of ``"conv"`` and ``"linear"``.
        placement: which of them get one.
        build: makes what takes a layer's place.
        fold: puts a trained branch into the weight of its layer; None if no weight computes the same.
        fits: whether it can sit at a site.
        check: refuses a choice of sites with an `AttachError`.
        needed: whether a backbone without any site is refused.
        kernel_sizes: of the convolutions it is made for unless `placement` or the family says others; empty for any.
        thin: whether few channels go through it, so that it belongs beside layers with many.
    """

    kinds: tuple[str, ...]
    placement: Placement
    build: Build
    fold: Fold | None
    fits: Callable[[Site], bool] = lambda site: True
    check: Callable[[Sequence[Site]], None] = lambda sites: None
    needed: bool = True
    kernel_sizes: tuple[int, ...] = (3,)
    thin: bool = False


@dataclass(frozen=True)
class Adapter:
    """A choice of what is trained.

    Args:
        name: as in the configuration.
        trains: the groups that are trained; what is not here stays frozen.
        branches: what it adds to the backbone; None for the baselines that add nothing.
        norm_tensors: which of a norm's affine is trained if `trains` has it.
        linear: whether what a layer adds is linear in what is trained, so that the mean of tensors gives the mean
            of the maps.
    """

    name: str
    trains: frozenset[Group]
    branches: Branches | None = None
    norm_tensors: frozenset[str] = frozenset({"weight", "bias"})
    linear: bool = True


TRAINED = frozenset({Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD})
"""What every adapter with branches trains."""

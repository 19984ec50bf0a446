"""What an adapter is: which tensors it trains, where it sits, and the module that it puts there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedadapt.adapters.sites import Site
from fedadapt.params import Group


class Beside(nn.Module):
    """A frozen convolution with a trainable branch added to its output, before the norm.

    Args:
        base: the frozen convolution.
        adapter: maps the same input, client-major ``[K*B, C, H, W]``, to the same output shape; its tensors
            have a leading client axis.
    """

    def __init__(self, base: nn.Conv2d, adapter: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        return self.base(x) + self.adapter(x)


@dataclass(frozen=True)
class Adapter:
    """A choice of what is trained.

    Args:
        name: as in the configuration.
        trains: the groups that are trained; what is not here stays frozen.
        fits: whether the adapter can sit at a site; None if it sits nowhere (the baselines).
        build: makes the branch for a site, its tensors with a client axis of length 1.
        pointwise: for an adapter that is linear in its input: the 1x1 kernel ``[O, I/groups]`` it equals,
            from its tensors without client axis. None if it cannot be merged.
    """

    name: str
    trains: frozenset[Group]
    fits: Callable[[Site], bool] | None = None
    build: Callable[[Site, torch.Generator], nn.Module] | None = None
    pointwise: Callable[[dict[str, Tensor]], Tensor] | None = None

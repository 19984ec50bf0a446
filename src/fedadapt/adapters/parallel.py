"""The parallel adapter: a full 1x1 convolution beside a frozen one."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import beside, client_product, into_centre
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.registry import register

Init = Literal["zero", "rebuffi"]


class Matrix(nn.Module):
    """A bias-free map of channels with one matrix for each client.

    Args:
        in_channels: C.
        out_channels: D.
        groups: blocks of channels that do not mix.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, out_channels, in_channels // groups), requires_grad=False)
        self.groups = groups

    def forward(self, x: Float[Tensor, "N ... C"]) -> Float[Tensor, "N ... D"]:
        return client_product(x, self.weight, self.groups)

    def matrix(self) -> Float[Tensor, "K D c"]:
        """The whole of it, for `BesidePixels` to fold."""
        return self.weight


def draw(weight: Float[Tensor, "1 D ..."], init: Init, generator: torch.Generator) -> None:
    """Draws what a branch starts at, in place: zero, or N(0, 2 / D) as in the source of the parallel adapter."""
    if init == "rebuffi":
        weight.normal_(0.0, (2.0 / weight.shape[1]) ** 0.5, generator=generator)


@register("adapter", "parallel")
def parallel(*, init: Init = "zero", sites: Placement = Placement()) -> Adapter:
    """A full 1x1 convolution beside every 3x3, with trained norms and head: about 11 % of the values.

    ``y = conv(x; W) + scaling * conv_1x1(x; A)`` with the stride and groups of the convolution, no bias, summed
    before the norm. It has a ninth of the weights of a 3x3, is linear in A (so the mean of adapters is the
    adapter of the mean map) and merges into the centre tap of W.

    Args:
        init: ``"zero"`` leaves the pretrained network exactly as it was; ``"rebuffi"`` is the source's
            N(0, 2 / out_channels), whose output is as strong as the frozen branch.
        sites: where the branches sit.

    Source:
        S.-A. Rebuffi, H. Bilen, A. Vedaldi, *Efficient Parametrization of Multi-Domain Deep Neural Networks*,
        CVPR 2018, equation 2.

    Differs:
        Zero start and frozen norm statistics by default: the source's random start destroys the pretrained
        function, which 120 central epochs repair and a few federated rounds do not.
    """

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        branch = Matrix(site.in_channels, site.out_channels, site.groups)
        draw(branch.weight, init, generator)
        return beside(site, branch, sites.scaling)

    fold = into_centre(lambda site, branch: branch["weight"], sites.scaling)
    return Adapter(
        "parallel", TRAINED, Branches(("conv",), sites, build, fold, fits=lambda site: site.has_centre)
    )

"""The diagonal adapter: one factor a channel beside a frozen convolution."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import beside, into_centre
from fedadapt.adapters.parallel import Init, draw
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.registry import register


def read_channels(site: Site) -> Tensor:
    """The input channel that each output channel of a site reads: its own, over again where there are more."""
    outputs = torch.arange(site.out_channels)
    first = outputs.div(site.out_per_group, rounding_mode="floor") * site.in_per_group
    return first + outputs % site.out_per_group % site.in_per_group


class Diagonal(nn.Module):
    """One factor for each client and output channel.

    Args:
        site: where it sits.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, site.out_channels), requires_grad=False)
        read = read_channels(site)
        self.read: list[int] | None = (
            None if torch.equal(read, torch.arange(site.in_channels)) else read.tolist()
        )

    def forward(self, x: Float[Tensor, "N ... C"]) -> Float[Tensor, "N ... D"]:
        taken = x if self.read is None else x[..., self.read]
        rows = taken.reshape(self.weight.shape[0], -1, taken.shape[-1])
        return (rows * self.weight.to(x.dtype)[:, None]).reshape(taken.shape)


@register("adapter", "diagonal")
def diagonal(*, init: Init = "zero", sites: Placement = Placement()) -> Adapter:
    """A depthwise 1x1 convolution beside every 3x3: one value for each output channel.

    ``y_o = conv(x; W)_o + scaling * a_o * x_i``, i the channel of the same number. Where there are more outputs
    than inputs the inputs are read over again (``i = o mod C``), where there are fewer the rest is not read:
    the matrix is an identity, cut or repeated to size, with its rows scaled. It is linear in a and merges.

    Args:
        init: as for the parallel adapter.
        sites: where the branches sit.

    Source:
        S.-A. Rebuffi, H. Bilen, A. Vedaldi, *Efficient Parametrization of Multi-Domain Deep Neural Networks*,
        CVPR 2018, equation 2, for the branch.

    Differs:
        The source's branch mixes all channels.
    """

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        branch = Diagonal(site)
        draw(branch.weight, init, generator)
        return beside(site, branch, sites.scaling)

    def kernel(site: Site, branch: dict[str, Tensor]) -> Tensor:
        matrix = torch.zeros(site.out_channels, site.in_per_group)
        matrix[torch.arange(site.out_channels), read_channels(site) % site.in_per_group] = branch["weight"]
        return matrix

    return Adapter(
        "diagonal",
        TRAINED,
        Branches(("conv",), sites, build, into_centre(kernel, sites.scaling), lambda site: site.has_centre),
    )

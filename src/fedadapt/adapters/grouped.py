"""The grouped adapter: a block-diagonal 1x1 convolution beside a frozen one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import beside, into_centre
from fedadapt.adapters.parallel import Init, Matrix, draw
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.errors import AttachError
from fedadapt.registry import register


@register("adapter", "grouped")
def grouped(
    *, groups: Annotated[int, Field(ge=1)] = 8, init: Init = "zero", sites: Placement = Placement()
) -> Adapter:
    """A 1x1 convolution in groups beside every 3x3: a full one's values divided by the number of groups.

    ``y = conv(x; W) + scaling * conv_1x1(x; A)`` with A block-diagonal, ``C * D / groups`` values. It is linear
    in A and merges into the centre tap of W, whose other entries stay as they are. Beside a convolution that is
    grouped itself, each of its groups is divided. Where the channels of a site cannot be divided by `groups`,
    the largest divisor of both is taken that divides `groups`; at a 3-channel stem that is 1.

    Args:
        groups: blocks of channels that do not mix.
        init: as for the parallel adapter.
        sites: where the branches sit; `sites.sizes` sets groups by site.

    Raises:
        AttachError: when it is attached, if `groups` divides the channels of no site.

    Source:
        S.-A. Rebuffi, H. Bilen, A. Vedaldi, *Efficient Parametrization of Multi-Domain Deep Neural Networks*,
        CVPR 2018, equation 2, for the branch.

    Differs:
        The source's branch is not grouped.
    """

    def blocks(site: Site) -> int:
        return site.groups * math.gcd(sites.size(site, groups), site.in_per_group, site.out_per_group)

    def check(chosen: Sequence[Site]) -> None:
        untaken = sites.untaken(chosen, "groups", groups, lambda site: blocks(site) // site.groups)
        if untaken:
            asked, where = untaken
            known = sorted({(site.in_per_group, site.out_per_group) for site in where})
            raise AttachError(
                f"{asked} divides the channels of no site (in and out, by group: "
                f"{', '.join(f'{i} and {o}' for i, o in known)}); use a divisor of them"
            )

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        branch = Matrix(site.in_channels, site.out_channels, blocks(site))
        draw(branch.weight, init, generator)
        return beside(site, branch, sites.scaling)

    def kernel(site: Site, branch: dict[str, Tensor]) -> Tensor:
        """The matrix with its zeros, ``[D, C / groups of the convolution]``."""
        dense = [
            torch.block_diag(*part.chunk(blocks(site) // site.groups))
            for part in branch["weight"].chunk(site.groups)
        ]
        return torch.cat(dense)

    return Adapter(
        "grouped",
        TRAINED,
        Branches(
            ("conv",),
            sites,
            build,
            into_centre(kernel, sites.scaling),
            lambda site: site.has_centre,
            check,
            thin=True,
        ),
    )

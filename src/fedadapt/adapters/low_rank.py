"""The low-rank adapter: two thin matrices beside a frozen layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import beside, client_product, into_centre
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.errors import AttachError
from fedadapt.registry import register

Rank = Annotated[int, Field(ge=1)]
FirstInit = Literal["normal", "orthogonal"]


class LowRank(nn.Module):
    """Channels down to a few and up again, with two matrices for each client.

    Args:
        site: where it sits; each group of its channels has its own pair.
        rank: of each group.
    """

    def __init__(self, site: Site, rank: int) -> None:
        super().__init__()
        self.groups = site.groups
        self.down = nn.Parameter(torch.zeros(1, site.groups * rank, site.in_per_group), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(1, site.out_channels, rank), requires_grad=False)

    def forward(self, x: Float[Tensor, "N ... C"]) -> Float[Tensor, "N ... D"]:
        return client_product(client_product(x, self.down, self.groups), self.up, self.groups)


@register("adapter", "low_rank")
def low_rank(*, rank: Rank = 8, init: FirstInit = "normal", sites: Placement = Placement()) -> Adapter:
    """Two thin matrices beside every 3x3 convolution and every linear layer: about 1 % of the values at rank 8.

    ``y = base(x; W) + scaling * B A x`` by pixel or token, A of shape ``[rank, C]``, B of shape ``[D, rank]``:
    ``rank * (C + D)`` values. Beside a grouped convolution each group has its own pair. A starts at N(0, 1/C),
    which keeps the size of its input, and B at zero, so the network starts as it was. It merges: B A is one
    matrix, which goes into the centre tap. It is not linear in A and B together: the mean of the products is not
    the product of the means.

    Args:
        rank: clipped at a site to the fewest channels that it has on a side, by group.
        init: of A, see `draw_first`.
        sites: where the branches sit; `sites.sizes` sets the rank by site.

    Raises:
        AttachError: when it is attached, if `rank` is larger than the channels of every site.

    Source:
        E. J. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, section 4.1, for the
        factors; S.-A. Rebuffi, H. Bilen, A. Vedaldi, CVPR 2018, equation 2, for their place beside convolutions.

    Differs:
        Beside a convolution A is a 1x1 too, where LoRA's has the kernel's size. One factor `scaling`, not
        alpha / rank.
    """
    clipped, check = clip_rank(sites, rank)

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        branch = LowRank(site, clipped(site))
        draw_first(branch.down, init, site.groups, generator)
        return beside(site, branch, sites.scaling)

    return Adapter(
        "low_rank",
        TRAINED,
        Branches(
            ("conv", "linear"),
            sites,
            build,
            into_centre(product, sites.scaling),
            lambda site: site.has_centre,
            check,
            thin=True,
        ),
        linear=False,
    )


def draw_first(
    down: Float[Tensor, "1 R *inputs"], init: FirstInit, groups: int, generator: torch.Generator
) -> None:
    """Draws the first of two thin matrices, in place; the second is zero, so the network starts as it was.

    Args:
        down: one row for each channel in between.
        init: ``"normal"``: N(0, 1 / n) with n inputs of a row, whose rows are about 1 long; ``"orthogonal"``: rows of
            length 1 at right angles within a group, so that no two channels in between say the same.
        groups: of rows.
        generator: of the site.
    """
    rows = down[0].flatten(1)
    if init == "normal":
        rows.normal_(0.0, rows.shape[1] ** -0.5, generator=generator)
        return
    for own in rows.chunk(groups):
        nn.init.orthogonal_(own, generator=generator)


def product(site: Site, branch: dict[str, Tensor]) -> Float[Tensor, "D c"]:
    """B A as one matrix, ``[D, C / groups]``."""
    down = branch["down"].unflatten(0, (site.groups, -1))
    return torch.matmul(branch["up"].unflatten(0, (site.groups, -1)), down).flatten(0, 1)


def clip_rank(sites: Placement, rank: int) -> tuple[Callable[[Site], int], Callable[[Sequence[Site]], None]]:
    """The rank at a site, and the check that it is not clipped at all of them."""

    def clipped(site: Site) -> int:
        return min(sites.size(site, rank), site.in_per_group, site.out_per_group)

    def check(chosen: Sequence[Site]) -> None:
        untaken = sites.untaken(chosen, "rank", rank, clipped)
        if untaken:
            asked, where = untaken
            most = max(min(site.in_per_group, site.out_per_group) for site in where)
            raise AttachError(
                f"{asked} is larger than the channels of every site (at most {most}, by group); use a rank from 1 to "
                f"{most}, or sites with more channels: adapter.sites.kernel_sizes=[1] are the pointwise convolutions"
            )

    return clipped, check

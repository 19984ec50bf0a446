"""The seeded low-rank adapter: one thin matrix is drawn from the run's seed, the other is trained."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import beside, client_product, into_centre
from fedadapt.adapters.low_rank import Rank, clip_rank, product
from fedadapt.adapters.parallel import Init, draw
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.registry import register


class SeededLowRank(nn.Module):
    """Channels down to a few by a fixed matrix, the same for all clients, and up by one for each client.

    Args:
        site: where it sits; each group of its channels has its own pair.
        rank: of each group.
        generator: draws the fixed matrix.
    """

    down: Tensor

    def __init__(self, site: Site, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.groups = site.groups
        shape = (site.groups * rank, site.in_per_group)
        # Signs come from whole numbers, which every machine draws alike; normal numbers differ in their last bits.
        signs = 2 * torch.randint(2, shape, generator=generator) - 1
        self.register_buffer("down", signs * site.in_per_group**-0.5, persistent=False)
        self.up = nn.Parameter(torch.zeros(1, site.out_channels, rank), requires_grad=False)

    def forward(self, x: Float[Tensor, "N ... C"]) -> Float[Tensor, "N ... D"]:
        return client_product(client_product(x, self.down[None], self.groups), self.up, self.groups)


@register("adapter", "seeded")
def seeded(*, rank: Rank = 8, init: Init = "zero", sites: Placement = Placement()) -> Adapter:
    """A low-rank adapter that trains and sends one of its two matrices: about 0.7 % of the values at rank 8.

    ``y = base(x; W) + scaling * B A x`` by pixel or token. A, of shape ``[rank, C]``, has entries
    ``+-1 / sqrt(C)`` whose signs follow from the run's seed and the name of the site: every party makes it
    by itself, and it is neither sent nor stored. B, of shape ``[D, rank]``, is trained, from zero by default. The branch is
    linear in B, so the mean of adapters is the adapter of the mean map; it merges into the centre tap.

    The rows of A have length 1, so A x is as large as x, and a step on B moves the map no further than the same
    step on a full matrix would.

    Args:
        rank: clipped at a site to the fewest channels that it has on a side, by group.
        init: of B, as for the parallel adapter.
        sites: where the branches sit; `sites.sizes` sets the rank by site.

    Raises:
        AttachError: when it is attached, if `rank` is larger than the channels of every site.

    Source:
        Y. Sun, Z. Li, Y. Li, B. Ding, *Improving LoRA in Privacy-preserving Federated Learning*, ICLR 2024,
        section 4, for training B alone; D. Achlioptas, *Database-friendly random projections*, JCSS 2003,
        theorem 1.1, for the signs.

    Differs:
        The source sends the fixed A once and draws it from a normal distribution; here it sits beside
        convolutions too.
    """
    clipped, check = clip_rank(sites, rank)

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        branch = SeededLowRank(site, clipped(site), generator)
        draw(branch.up, init, generator)
        return beside(site, branch, sites.scaling)

    return Adapter(
        "seeded",
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
    )

"""The bottleneck adapter: a small network beside a frozen layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import beside, client_product
from fedadapt.adapters.low_rank import FirstInit, Rank, clip_rank, draw_first
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.registry import register


class Bottleneck(nn.Module):
    """Channels down to a few, a ReLU, and up again, with weights for each client.

    Args:
        site: where it sits.
        rank: channels in between.
    """

    def __init__(self, site: Site, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(1, rank, site.in_channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(1, rank), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(1, site.out_channels, rank), requires_grad=False)

    def forward(self, x: Float[Tensor, "N ... C"]) -> Float[Tensor, "N ... D"]:
        clients = self.bias.shape[0]
        thin = client_product(x, self.down, 1).unflatten(0, (clients, -1))
        bias = self.bias.to(x.dtype).view(clients, *(1 for _ in thin.shape[1:-1]), -1)
        return client_product(functional.relu(thin + bias).flatten(0, 1), self.up, 1)


@register("adapter", "bottleneck")
def bottleneck(*, rank: Rank = 8, init: FirstInit = "normal", sites: Placement = Placement()) -> Adapter:
    """A bottleneck with a ReLU beside every linear layer, for transformers; it does not merge.

    ``y = base(x) + scaling * U relu(D x + b)`` by token: ``rank * (C + D) + rank`` values. D starts at
    N(0, 1/C), b and U at zero. It is not linear in its input, so no weight of the layer computes the same, and
    not linear in its parameters, so the mean of adapters is not the adapter of the mean map.

    Args:
        rank: channels in between, clipped at a site to the fewest that it has on a side.
        init: of D, see `fedadapt.adapters.low_rank.draw_first`.
        sites: where the branches sit; ``layers = ["conv"]`` puts them beside convolutions, by pixel.

    Raises:
        AttachError: when it is attached, if `rank` is larger than the channels of every site.

    Source:
        S. Chen et al., *AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition*, NeurIPS
        2022, equation 2.

    Differs:
        The source has one beside the two layers of an MLP together, and no bias is said of; here one is beside
        each layer.
    """
    clipped, check = clip_rank(sites, rank)

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        branch = Bottleneck(site, clipped(site))
        draw_first(branch.down, init, 1, generator)
        return beside(site, branch, sites.scaling)

    branches = Branches(
        ("linear", "conv") if "conv" in sites.layers else ("linear",),
        sites,
        build,
        fold=None,
        fits=lambda site: site.has_centre and site.groups == 1,
        check=check,
    )
    return Adapter("bottleneck", TRAINED, branches, linear=False)

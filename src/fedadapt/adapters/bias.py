"""The bias adapter: every bias of the network is trained, and nothing else."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import After
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.errors import ConfigError
from fedadapt.registry import register


class Offset(nn.Module):
    """One summand for each client and output channel, whatever the input.

    Args:
        channels: D.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels), requires_grad=False)

    def forward(self, x: Float[Tensor, "N ... D"]) -> Float[Tensor, "N ... D"]:
        clients, channels = self.bias.shape
        rows = x.numel() // (clients * channels)
        return self.bias.to(x.dtype)[:, None].expand(clients, rows, channels).reshape(x.shape)


@register("adapter", "bias")
def bias(*, sites: Placement = Placement()) -> Adapter:
    """Only biases are trained, those of norms among them, and the head: less than half of norms and head.

    A layer's bias becomes ``b + scaling * d_k``, d_k from zero. A layer without a bias gets none, so in a residual
    net it is the norms' shifts that are trained.

    Args:
        sites: which layers' biases, and of which norms.

    Raises:
        ConfigError: `sites` asks for dropout; a bias has no input.

    Source:
        E. Ben Zaken, Y. Goldberg, S. Ravfogel, *BitFit: Simple Parameter-efficient Fine-tuning for
        Transformer-based Masked Language-models*, ACL 2022, section 3.
    """
    if sites.dropout:
        raise ConfigError(
            f"adapter.sites.dropout is {sites.dropout:g}, but a bias has no input to drop; leave it out"
        )

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        del generator
        branch = Offset(site.out_channels)
        return After(site.module, branch, sites.scaling, channels_first=site.kind == "conv")

    def fold(
        site: Site, weight: Tensor, bias: Tensor | None, branch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        del site
        return weight, None if bias is None else bias + sites.scaling * branch["bias"]

    branches = Branches(
        ("conv", "linear"),
        sites,
        build,
        fold,
        fits=lambda site: site.module.bias is not None,
        needed=False,
        kernel_sizes=(),
    )
    return Adapter("bias", TRAINED, branches, norm_tensors=frozenset({"bias"}))

"""LoRA: a thin layer of the same kernel beside a frozen one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import Beside, client_product
from fedadapt.adapters.low_rank import FirstInit, LowRank, Rank, clip_rank, draw_first, product
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.registry import register


class LowRankConv(nn.Module):
    """A convolution with few outputs and a 1x1 up from them, both with a kernel for each client.

    The clients' kernels are groups of one convolution: ``[K*B, C]`` becomes ``[B, K*C]``.

    Args:
        conv: the convolution beside it, whose geometry it takes.
        rank: outputs, by group.
    """

    def __init__(self, conv: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding = conv.padding if conv.padding_mode == "zeros" else 0
        # Modes such as "reflect" pad before the convolution, by these amounts.
        self.mode = conv.padding_mode
        self.around = list(conv._reversed_padding_repeated_twice)  # noqa: SLF001 - torch's own `forward` uses it
        inner = (conv.groups * rank, conv.in_channels // conv.groups, *conv.kernel_size)
        self.down = nn.Parameter(torch.zeros(1, *inner), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(1, conv.out_channels, rank), requires_grad=False)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        clients = self.down.shape[0]
        if self.mode != "zeros":
            x = functional.pad(x, self.around, mode=self.mode)
        side_by_side = x.unflatten(0, (clients, -1)).transpose(0, 1).flatten(1, 2)
        thin = functional.conv2d(
            side_by_side,
            self.down.to(x.dtype).flatten(0, 1),
            None,
            self.stride,
            self.padding,
            self.dilation,
            clients * self.groups,
        )
        pixels = thin.unflatten(1, (clients, -1)).permute(1, 0, 3, 4, 2).flatten(0, 1)
        return client_product(pixels, self.up, self.groups).permute(0, 3, 1, 2)


@register("adapter", "lora")
def lora(*, rank: Rank = 8, init: FirstInit = "normal", sites: Placement = Placement()) -> Adapter:
    """LoRA beside every 3x3 convolution and every linear layer, for comparison at equal bytes.

    ``y = base(x; W) + scaling * B (A * x)``: beside a convolution A is a k x k convolution to `rank` channels
    with the same stride and padding, B a 1x1 up from them: ``rank * (k * k * C + D)`` values. Beside a linear
    layer it is the low-rank adapter. A starts at N(0, 1 / (k * k * C)), B at zero. It merges into the whole
    kernel, whatever its size and padding.

    Args:
        rank: clipped at a site to the fewest channels that it has on a side, by group.
        init: of A, see `fedadapt.adapters.low_rank.draw_first`.
        sites: where the branches sit; `sites.sizes` sets the rank by site.

    Raises:
        AttachError: when it is attached, if `rank` is larger than the channels of every site.

    Source:
        E. J. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, section 4.1; for
        convolutions as in the authors' library.

    Differs:
        One factor `scaling` in place of alpha / rank; A is normal, not uniform.
    """
    clipped, check = clip_rank(sites, rank)

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        conv, size = site.module, clipped(site)
        branch = LowRank(site, size) if isinstance(conv, nn.Linear) else LowRankConv(conv, size)
        draw_first(branch.down, init, site.groups, generator)
        return Beside(conv, branch, sites.scaling)

    def fold(
        site: Site, weight: Tensor, bias: Tensor | None, branch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        flat = {"down": branch["down"].flatten(1), "up": branch["up"]}
        return weight + sites.scaling * product(site, flat).reshape(weight.shape), bias

    return Adapter(
        "lora",
        TRAINED,
        Branches(
            ("conv", "linear"),
            sites,
            build,
            fold,
            # A subclass may pad as it likes; the branch could not follow.
            lambda site: type(site.module) in (nn.Conv2d, nn.Linear),
            check,
            thin=True,
        ),
        linear=False,
    )

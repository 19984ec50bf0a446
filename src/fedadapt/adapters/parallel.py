"""The parallel adapter: a 1x1 convolution beside a frozen one."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fedadapt.adapters.adapter import Adapter
from fedadapt.adapters.sites import Site
from fedadapt.params import Group
from fedadapt.registry import register

Init = Literal["zero", "rebuffi"]


class Pointwise(nn.Module):
    """A bias-free 1x1 convolution with one kernel for each client, as one batched matrix product.

    On channels-last maps the images of a client are the rows of a matrix ``[B*h*w, C]`` as they lie in
    memory, so nothing is copied unless a stride picks pixels.

    Args:
        in_channels: C.
        out_channels: D.
        stride: by axis, as the convolution beside it.
        groups: likewise.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int], groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, out_channels, in_channels // groups), requires_grad=False)
        self.stride = stride
        self.groups = groups

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        rows, columns = self.stride
        pixels = x[:, :, ::rows, ::columns].permute(0, 2, 3, 1)
        clients, out_channels, _ = self.weight.shape
        kernel = self.weight.to(x.dtype)
        if self.groups == 1:
            y = torch.bmm(pixels.reshape(clients, -1, pixels.shape[-1]), kernel.transpose(1, 2))
        else:
            by_group = pixels.reshape(clients, -1, self.groups, kernel.shape[-1]).transpose(1, 2)
            grouped = kernel.unflatten(1, (self.groups, -1))
            y = torch.matmul(by_group, grouped.transpose(2, 3)).transpose(1, 2)
        return y.reshape(*pixels.shape[:3], out_channels).permute(0, 3, 1, 2)


@register("adapter", "parallel")
def parallel(*, init: Init = "zero", kernel_sizes: tuple[Annotated[int, Field(ge=3)], ...] = (3,)) -> Adapter:
    """A full 1x1 convolution beside every 3x3, with trained norms and head: about 11 % of the values.

    ``y = conv(x; W) + conv_1x1(x; A)`` with the stride and groups of the convolution, no bias, summed before
    the norm. It has a ninth of the weights of a 3x3, is linear in A (so the mean of adapters is the adapter of
    the mean map) and merges into the centre tap of W.

    Args:
        init: ``"zero"`` leaves the pretrained network exactly as it was; ``"rebuffi"`` is the source's
            N(0, 2 / out_channels), whose output is as strong as the frozen branch.
        kernel_sizes: the convolutions that get an adapter, by the size of their square kernel.

    Source:
        S.-A. Rebuffi, H. Bilen, A. Vedaldi, *Efficient Parametrization of Multi-Domain Deep Neural Networks*,
        CVPR 2018, equation 2.

    Differs:
        Zero start and frozen norm statistics by default: the source's random start destroys the pretrained
        function, which 120 central epochs repair and a few federated rounds do not.
    """

    def fits(site: Site) -> bool:
        height, width = site.module.kernel_size
        return site.has_centre and height == width and height in kernel_sizes

    def build(site: Site, generator: torch.Generator) -> Pointwise:
        conv = site.module
        height, width = conv.stride
        branch = Pointwise(conv.in_channels, conv.out_channels, (height, width), conv.groups)
        if init == "rebuffi":
            branch.weight.normal_(0.0, (2.0 / conv.out_channels) ** 0.5, generator=generator)
        return branch

    return Adapter(
        "parallel",
        frozenset({Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD}),
        fits,
        build,
        pointwise=lambda tensors: tensors["weight"],
    )

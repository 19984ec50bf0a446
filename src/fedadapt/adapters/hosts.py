"""What takes the place of a frozen layer: the layer with a branch beside it or after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedadapt.adapters.adapter import Fold
from fedadapt.adapters.centre import client_conv, is_foldable
from fedadapt.adapters.sites import Site

Change = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]
"""What a branch is given instead of its input."""


class _Dense(Protocol):
    """A branch that is one matrix for each client."""

    def matrix(self) -> Float[Tensor, "K D C"]: ...


class Beside(nn.Module):
    """A frozen layer with a branch added to its output, before the norm: ``y = base(x) + scaling * adapter(x)``.

    Args:
        base: the frozen layer.
        adapter: maps the same input, client by client, to the same output shape; its tensors have a leading
            client axis.
        scaling: of the branch.
    """

    def __init__(self, base: nn.Module, adapter: nn.Module, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.scaling = scaling

    def forward(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
        return torch.add(self.base(x), self.adapter(x), alpha=self.scaling)


class BesidePixels(nn.Module):
    """`Beside` for a convolution whose branch maps the channels of each pixel under the kernel's centre.

    On channels-last maps the pixels of a client are the rows of a matrix as they lie in memory, so nothing is
    copied unless a stride picks pixels. A branch that is one matrix is computed together with the convolution
    where that is cheaper, see `client_conv`.

    Args:
        base: the frozen convolution.
        adapter: maps channels, the last axis.
        stride: of the convolution, by axis.
        scaling: of the branch.
    """

    def __init__(self, base: nn.Module, adapter: nn.Module, stride: tuple[int, int], scaling: float) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.stride = stride
        self.scaling = scaling
        self.joins = is_foldable(base) and getattr(adapter, "groups", 0) == 1 and hasattr(adapter, "matrix")

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        if self.joins:
            matrix = cast("_Dense", self.adapter).matrix()
            conv = cast("nn.Conv2d", self.base)
            return client_conv(conv, x, matrix if self.scaling == 1 else self.scaling * matrix)
        rows, columns = self.stride
        pixels = x[:, :, ::rows, ::columns].permute(0, 2, 3, 1)
        return torch.add(self.base(x), self.adapter(pixels).permute(0, 3, 1, 2), alpha=self.scaling)


class After(nn.Module):
    """A frozen layer followed by a residual branch: ``y = z + scaling * adapter(z)``, ``z = base(x)``.

    Args:
        base: the frozen layer.
        adapter: maps channels, the last axis, to as many.
        channels_first: whether the layer's output has its channels on axis 1.
        scaling: of the branch.
    """

    def __init__(self, base: nn.Module, adapter: nn.Module, scaling: float, *, channels_first: bool) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.scaling = scaling
        self.channels_first = channels_first

    def forward(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
        z = self.base(x)
        if not self.channels_first:
            return torch.add(z, self.adapter(z), alpha=self.scaling)
        added = self.adapter(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return torch.add(z, added, alpha=self.scaling)


def beside(site: Site, branch: nn.Module, scaling: float) -> nn.Module:
    """The site's layer with a branch beside it that maps the channels of every pixel or token."""
    if site.kind == "linear":
        return Beside(site.module, branch, scaling)
    return BesidePixels(site.module, branch, site.stride, scaling)


def change_input(host: nn.Module, change: Change) -> None:
    """Has a branch get something else than its layer does, so that the two are no longer computed together.

    Args:
        host: of the layer and the branch.
        change: ``(branch, (x,)) -> (x',)``, or None to leave it.
    """
    host.get_submodule("adapter").register_forward_pre_hook(change)
    if isinstance(host, BesidePixels):
        host.joins = False


def into_centre(kernel: Callable[[Site, dict[str, Tensor]], Tensor], scaling: float) -> Fold:
    """Folds a branch that is a matrix by channels into the centre tap of the layer's kernel.

    ``W'[:, :, c, c] = W[:, :, c, c] + scaling * A``: the centre tap reads the same pixels as the branch, whatever
    the padding. For a linear layer ``W' = W + scaling * A``.

    Args:
        kernel: ``(site, branch) -> A``, of shape ``[D, C/groups]``.
        scaling: of the branch.
    """

    def fold(
        site: Site, weight: Tensor, bias: Tensor | None, branch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        matrix = scaling * kernel(site, branch)
        if site.kind == "linear":
            return weight + matrix, bias
        height, width = (k // 2 for k in site.kernel_size)
        folded = weight.clone()
        folded[:, :, height, width] += matrix
        return folded, bias

    return fold


def client_product(
    x: Float[Tensor, "N ... C"], weight: Float[Tensor, "K D c"], groups: int
) -> Float[Tensor, "N ... D"]:
    """Each client's rows times its own matrix, as one batched product.

    Args:
        x: rows of channels, client by client.
        weight: one matrix for each client; `c` is C / groups.
        groups: blocks of channels that do not mix.
    """
    clients, out_channels, _ = weight.shape
    kernel = weight.to(x.dtype)
    if groups == 1:
        y = torch.bmm(x.reshape(clients, -1, x.shape[-1]), kernel.transpose(1, 2))
    else:
        by_group = x.reshape(clients, -1, groups, kernel.shape[-1]).transpose(1, 2)
        y = torch.matmul(by_group, kernel.unflatten(1, (groups, -1)).transpose(2, 3)).transpose(1, 2)
    return y.reshape(*x.shape[:-1], out_channels)

"""A frozen convolution with a matrix for each client under its kernel's centre, as one differentiable step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedadapt.adapters.products import add_product, outer_product

FOLD_FROM = 2**20
"""Multiplications of one client's matrix from which it is cheaper to fold it into a kernel of the client's own.

A product with so few channels runs at a third of the speed of the convolution, and its sum is one more pass over
the map; a kernel of its own costs a call for each client instead.
"""

PIXELS_FROM = 128
"""Pixels of one client below which a copy of the kernel costs more than it saves."""


def is_foldable(conv: nn.Module) -> bool:
    """Whether `client_conv` can stand in for a convolution: plain, zero-padded, without groups and without hooks.

    Hooks of the old `weight_norm` and `spectral_norm` make the weight anew before each call.
    """
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and conv.groups == 1
        and not (conv._forward_pre_hooks or conv._forward_hooks)  # noqa: SLF001 - no public way to ask
    )


def is_worth_folding(conv: nn.Conv2d, x: Float[Tensor, "N C H W"], clients: int) -> bool:
    """Whether kernels of their own are cheaper for `clients` in `x`; it follows from shapes alone."""
    if x.is_cuda and clients > 1:
        # A GPU waits for the many small calls.
        return False
    rows, columns = (-(-side // step) for side, step in zip(x.shape[2:], conv.stride, strict=True))
    pixels = x.shape[0] // clients * rows * columns
    return pixels >= PIXELS_FROM and pixels * conv.out_channels * conv.in_channels >= FOLD_FROM


def client_conv(
    conv: nn.Conv2d, x: Float[Tensor, "N C H W"], matrix: Float[Tensor, "K D C"]
) -> Float[Tensor, "N D h w"]:
    """What `conv` gives, and each client's matrix times the pixels under the kernel's centre.

    ``y_k = conv(x_k; W) + A_k x_k = conv(x_k; W + A_k in the centre tap)``. The second is computed if it is worth
    it, else the first, with one batched product for all clients. Only `x` and the matrices get gradients: nothing
    is computed for a kernel that is frozen, nor for images.

    Args:
        conv: plain and centred, see `is_foldable`.
        x: client by client.
        matrix: A.
    """
    if x.requires_grad:
        # Pooling hands back gradients in another layout, which shortcuts would carry through the whole network.
        x.register_hook(_channels_last)
    num_kernels = len(matrix) if is_worth_folding(conv, x, len(matrix)) else 0
    geometry = (conv.stride, conv.padding, conv.dilation)
    y: Tensor = _ClientConv.apply(x, conv.weight, matrix, conv.bias, geometry, num_kernels)
    return y


class _ClientConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        geometry: tuple[Sequence[int], ...],
        num_kernels: int,
    ) -> Tensor:
        ctx.geometry, ctx.folds = geometry, num_kernels > 0
        clients, (stride, padding, dilation) = len(matrix), geometry
        x = x.contiguous(memory_format=torch.channels_last)
        if num_kernels:
            kernels = [_folded(weight, own) for own in matrix]
            parts = [
                torch.conv2d(own, kernel, bias, stride, padding, dilation)
                for own, kernel in zip(x.chunk(clients), kernels, strict=True)
            ]
            y = parts[0] if clients == 1 else torch.cat(parts)
        else:
            kernels = [weight]
            y = torch.conv2d(x, weight, bias, stride, padding, dilation)
            y = y.contiguous(memory_format=torch.channels_last)
            kernel = matrix.to(x.dtype).transpose(1, 2)
            add_product(_rows(y, clients), _rows(_under(x, stride), clients), kernel)
        ctx.save_for_backward(x, matrix, *kernels)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix, *kernels = ctx.saved_tensors
        stride, _, _ = ctx.geometry
        clients = len(matrix)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        rows = _rows(gradient, clients)
        by_input = by_matrix = None
        if ctx.needs_input_grad[2]:
            under = _rows(_under(x, stride), clients)
            by_matrix = outer_product(under, rows).transpose(1, 2).to(matrix.dtype)
        if ctx.needs_input_grad[0]:
            parts = [
                _input_gradient(own, x_own, kernel, ctx.geometry)
                for own, x_own, kernel in zip(
                    gradient.chunk(len(kernels)), x.chunk(len(kernels)), kernels, strict=True
                )
            ]
            by_input = parts[0] if len(parts) == 1 else torch.cat(parts)
            if not ctx.folds:
                kernel = matrix.to(x.dtype)
                by_input = by_input.contiguous(memory_format=torch.channels_last)
                if tuple(stride) == (1, 1):
                    add_product(_rows(by_input, clients), rows, kernel)
                else:
                    added = torch.bmm(rows, kernel).view(*_under(x, stride).permute(0, 2, 3, 1).shape)
                    _under(by_input, stride).add_(added.permute(0, 3, 1, 2))
        return by_input, None, by_matrix, None, None, None


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _folded(weight: Tensor, matrix: Tensor) -> Tensor:
    kernel = weight.clone()
    kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] += matrix
    return kernel


def _under(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The pixels that the kernel's centre is put on."""
    return x[:, :, :: stride[0], :: stride[1]]


def _rows(x: Tensor, clients: int) -> Float[Tensor, "K P C"]:
    """The pixels of each client as rows of channels: a view if `x` is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(clients, -1, x.shape[1])


def _input_gradient(
    gradient: Tensor, x: Tensor, kernel: Tensor, geometry: tuple[Sequence[int], ...]
) -> Tensor:
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, kernel, None, *geometry, False, [0, 0], 1, [True, False, False]
    )[0]
    return found

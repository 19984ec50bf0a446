"""Batched products of many pixels with each client's own small matrix, as the processor likes them.

A product of four channels with four takes as long as one of sixteen with sixteen: its rows do not fill the
processor's registers. So several pixels are taken for one, their channels side by side, and the matrix stands as many
times along the diagonal of a larger one. That is more multiplications, by zeros, in a fraction of the time.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

WIDTH = 16
"""Channels that fill the registers."""


def add_product(
    total: Float[Tensor, "K P D"], rows: Float[Tensor, "K P C"], matrix: Float[Tensor, "K C D"]
) -> None:
    """``total_k += rows_k matrix_k`` in place; both are contiguous."""
    joined = pixels_at_once(rows, matrix.shape[2])
    total = total.view(len(total), -1, joined * total.shape[2])
    total.baddbmm_(rows.reshape(len(rows), -1, joined * rows.shape[2]), _repeated(matrix, joined))


def outer_product(rows: Float[Tensor, "K P C"], others: Float[Tensor, "K P D"]) -> Float[Tensor, "K C D"]:
    """``sum_p rows_kp others_kp^T``."""
    joined = pixels_at_once(rows, others.shape[2])
    # In this order: where an image has three channels, the other one takes four times as long.
    found = torch.bmm(
        rows.reshape(len(rows), -1, joined * rows.shape[2]).transpose(1, 2),
        others.reshape(len(others), -1, joined * others.shape[2]),
    )
    if joined == 1:
        return found
    blocks = found.view(len(rows), joined, rows.shape[2], joined, others.shape[2])
    return blocks.diagonal(dim1=1, dim2=3).sum(-1)


def pixels_at_once(rows: Float[Tensor, "K P C"], others: int) -> int:
    """How many pixels are taken for one; it follows from shapes alone.

    Args:
        rows: pixels with their channels.
        others: channels that they are multiplied to, or with.
    """
    joined, pixels, channels = 1, rows.shape[1], max(rows.shape[2], others)
    # A GPU has its own way with small matrices.
    while not rows.is_cuda and 2 * joined * channels <= WIDTH and pixels % (2 * joined) == 0:
        joined *= 2
    return joined


def _repeated(matrix: Float[Tensor, "K C D"], times: int) -> Float[Tensor, "K c d"]:
    """Each matrix so many times along the diagonal of a larger one, which is zero elsewhere."""
    if times == 1:
        return matrix
    clients, inputs, outputs = matrix.shape
    larger = matrix.new_zeros(clients, times, inputs, times, outputs)
    larger.diagonal(dim1=1, dim2=3).copy_(matrix[..., None])
    return larger.view(clients, times * inputs, times * outputs)

"""Matrices as products of two thin ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage
from fedadapt.errors import FrameError
from fedadapt.params import Params, is_finite
from fedadapt.registry import register

_LEFT, _RIGHT = ":left", ":right"


@register("codec", "lowrank")
def lowrank(
    *, rank: Annotated[int, Field(ge=1, le=1024)] = 4, iterations: Annotated[int, Field(ge=1, le=8)] = 2
) -> Codec:
    """Every matrix as ``P Q^T`` of a low rank, found by subspace iteration from a seeded start.

    A tensor ``[m, ...]`` is the matrix M of m rows; ``P = orth(M Q)``, ``Q = M^T P``, over again. Tensors that would
    not get smaller are handed on whole. Biased, with no bound below the norm: it is for error feedback, and made
    for the full model.

    Args:
        rank: columns of P and Q.
        iterations: more come closer to the best matrix of this rank.

    Source:
        T. Vogels, S. P. Karimireddy, M. Jaggi, *PowerSGD: Practical Low-Rank Gradient Compression for Distributed
        Optimization*, NeurIPS 2019, algorithm 1.

    Differs:
        Each client sends both factors of its own matrix, since nothing is summed on the way; hence several
        iterations in one message, and no start kept from the last one.
    """
    name = f"lowrank(rank={rank}, iterations={iterations})"

    def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
        handed: Params = {}
        for tensor_name, tensor in params.items():
            if _shrinks(tensor.shape, rank):
                sides = factors(
                    tensor.reshape(len(tensor), -1), rank, iterations, key.noise(f"lowrank/{tensor_name}")
                )
                handed |= dict(zip((tensor_name + _LEFT, tensor_name + _RIGHT), sides, strict=True))
            else:
                handed[tensor_name] = tensor
        if not is_finite(handed):
            raise FrameError(f"codec {name!r}: values over 1e34 have no factors; use codec bfloat16")
        return handed, ()

    def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
        del parts, key
        return {
            tensor_name: product(params[tensor_name + _LEFT], params[tensor_name + _RIGHT]).view(shape)
            if _shrinks(shape, rank)
            else params[tensor_name]
            for tensor_name, shape in layout.items()
        }

    def rest(layout: Layout) -> Layout:
        handed: dict[str, torch.Size] = {}
        for tensor_name, shape in layout.items():
            if _shrinks(shape, rank):
                handed[tensor_name + _LEFT] = torch.Size([shape[0], rank])
                handed[tensor_name + _RIGHT] = torch.Size([math.prod(shape[1:]), rank])
            else:
                handed[tensor_name] = shape
        return handed

    # What later stages lose of one factor is multiplied by the other, whose size is not bounded by a share. With factors
    # of equal norm, the first with columns at right angles, a share s lost of both is at most 2 (rank + 1) s of the product.
    law = Law(1.0 + 1e-5, 1e-36, unbiased=False, gain=math.inf, loss=1.0, magnifies=2.0 * (rank + 1))
    return Codec((Stage(name, encode, decode, rest, lambda layout: (), law, by_tensor=True),))


def factors(
    matrix: Float[Tensor, "M N"], rank: int, iterations: int, generator: np.random.Generator
) -> tuple[Float[Tensor, "M R"], Float[Tensor, "N R"]]:
    """Two thin matrices of equal norm, the first with orthogonal columns, whose product is near to `matrix`."""
    wide = matrix.detach().cpu().double()
    right = torch.from_numpy(generator.standard_normal((wide.shape[1], rank)))
    for _ in range(iterations):
        left = torch.linalg.qr(wide @ right).Q
        right = wide.t() @ left
    # As large as each other, so that neither is lost where the two share a scale.
    balance = (torch.linalg.norm(right) / rank**0.5).clamp(min=1e-60).sqrt()
    return (left * balance).float(), (right / balance).float()


def product(left: Float[Tensor, "M R"], right: Float[Tensor, "N R"]) -> Float[Tensor, "M N"]:
    """``left right^T``, its products added one by one: a matrix product has other last bits on other machines."""
    found = torch.zeros(len(left), len(right))
    for column in range(left.shape[1]):
        found += left[:, column, None] * right[None, :, column]
    return found


def _shrinks(shape: Sequence[int], rank: int) -> bool:
    """Whether the factors of a tensor hold fewer values than it does."""
    return len(shape) > 1 and rank * (shape[0] + math.prod(shape[1:])) < math.prod(shape)

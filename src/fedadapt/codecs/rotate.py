"""A random rotation, so that no value of a block stands out before it is quantised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage, Vector, count, flat, flatten, unflatten
from fedadapt.errors import FrameError
from fedadapt.params import Params
from fedadapt.registry import register


@register("codec", "rotate")
def rotate(*, block: Literal[16, 64, 256, 1024, 4096, 16384] = 1024) -> Codec:
    """A seeded rotation of each block: ``y = H (d * x)``, signs d at random, H the orthonormal Hadamard matrix.

    After it the values of a block are near to normally distributed whatever they were, so its largest magnitude
    is small against its norm, and a grid up to it loses less. Nothing is sent for it.

    Args:
        block: values that are rotated together; a power of 4, so that ``1 / sqrt(block)`` is a float.

    Source:
        A. T. Suresh, F. X. Yu, S. Kumar, H. B. McMahan, *Distributed Mean Estimation with Limited Communication*,
        ICML 2017, section 3.

    Differs:
        By blocks, so that cost and padding are bounded. Sums and differences only, no matrix product: every
        machine gets the same bits.
    """
    name = f"rotate(block={block})"
    # Rounding in log2(block) sums; values that fall below the range of normal floats on the way.
    law = Law(1e-5, 1e-36, evens=True)

    def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
        values = flatten(params, block)
        turned = _hadamard(values * _signs(len(values), key), block)
        if not np.isfinite(turned).all():
            raise FrameError(f"codec {name!r}: values over 1e34 cannot be rotated; use codec bfloat16")
        return unflatten(turned, flat(len(turned))), ()

    def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
        del parts
        values = flatten(params)
        return unflatten(_hadamard(values, block) * _signs(len(values), key), layout)

    def rest(layout: Layout) -> Layout:
        return flat(-(-count(layout) // block) * block)

    return Codec((Stage(name, encode, decode, rest, lambda layout: (), law),))


def _signs(total: int, key: Key) -> Vector:
    words = key.words("rotate", -(-total // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:total]
    return bits.astype(np.float32) * np.float32(2) - np.float32(1)


def _hadamard(values: Vector, block: int) -> Vector:
    """The transform of every block, by the fast algorithm, in a few hundred kilobytes at a time."""
    done = np.empty_like(values).reshape(-1, block)
    blocks = values.reshape(-1, block)
    step = max(1, 2**16 // block)
    for begin in range(0, len(blocks), step):
        # A block a column, so that every sum is over whole rows. Scaled first: a large sum is not an infinite one.
        piece = np.multiply(blocks[begin : begin + step].T, np.float32(block**-0.5), order="C")
        turned = np.empty_like(piece)
        width = 1
        while width < block:
            old, new = (half.reshape(-1, 2, width * piece.shape[1]) for half in (piece, turned))
            np.add(old[:, 0], old[:, 1], out=new[:, 0])
            np.subtract(old[:, 0], old[:, 1], out=new[:, 1])
            piece, turned = turned, piece
            width *= 2
        done[begin : begin + step] = piece.T
    return done.reshape(-1)

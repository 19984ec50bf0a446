"""Blocks of values on a grid of few points, rounded at random or to nearest; whole numbers packed in bits."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from fedadapt.codecs.bfloat16 import Halves, round_up, widen
from fedadapt.codecs.codec import Key, Law, Vector
from fedadapt.errors import FrameError

Rounding = Literal["stochastic", "nearest"]

Codes = np.ndarray[tuple[int], np.dtype[np.uint8]]
"""Places on the grid, counted from its lower end."""

SMALLEST = 1e-30
"""A block whose largest value is smaller counts as zero: its quotients would leave the range of floats."""

_AT_ONCE = 2**16
"""Values that are worked on together, so that they stay in the processor's cache."""


def to_grid(
    values: Vector,
    points: int,
    block: int,
    rounding: Rounding,
    key: Key,
    *,
    total: int,
    spread: Literal["largest", "mean"],
) -> tuple[Halves, Codes]:
    """Rounds each block to `points` equidistant values from -s to s, s its scale.

    ``q = floor((x / s + 1) (points - 1) / 2 + u)`` with u uniform in [0, 1), which has the mean x, or u = 1/2.

    Args:
        values: a whole number of blocks, filled up with zeros.
        points: of the grid; with an odd number, zero is one of them.
        block: values that share a scale.
        rounding: at random, unbiased, or to the nearest point.
        key: of the message.
        total: how many values there are without what fills up the last block.
        spread: whether s is the largest magnitude of the block or the mean one, which cuts off what is larger.

    Returns:
        The scales, rounded up to bfloat16, and the places on the grid.
    """
    blocks = values.reshape(-1, block)
    codes = np.empty(blocks.shape, dtype=np.uint8)
    scales = np.empty(len(blocks), dtype="<u2")
    noise, half = key.noise("rounding"), np.float32((points - 1) / 2)
    filled = np.minimum(total - block * np.arange(len(blocks)), block).astype(np.float32)
    step = max(1, _AT_ONCE // block)
    for begin in range(0, len(blocks), step):
        piece = blocks[begin : begin + step]
        sizes = np.abs(piece)
        scale = round_up(
            sizes.max(axis=1) if spread == "largest" else sizes.sum(axis=1) / filled[begin : begin + step]
        )
        wide = widen(scale)
        zero = wide < SMALLEST
        scale[zero] = 0
        wide[zero] = 1
        scales[begin : begin + step] = scale
        place = np.divide(piece, wide[:, None], out=sizes)
        place += 1
        place *= half
        place += noise.random(place.shape, dtype=np.float32) if rounding == "stochastic" else np.float32(0.5)
        # A sum may be rounded up to one more than the last point, and the mean is exceeded.
        np.clip(place, 0, points - 1, out=place)
        codes[begin : begin + step] = place
    return scales, codes.reshape(-1)


def from_grid(scales: Halves, codes: Codes, points: int, block: int) -> Vector:
    """The values of places on the grid.

    Raises:
        FrameError: a place is not on the grid.
    """
    if codes.size and int(codes.max()) >= points:
        raise FrameError(f"section holds the code {int(codes.max())}, its grid has {points} points")
    half = np.float32((points - 1) / 2)
    values = np.zeros(len(scales) * block, dtype=np.float32)
    values[: len(codes)] = codes
    blocks = values.reshape(-1, block)
    steps = widen(scales) / half
    at_once = max(1, _AT_ONCE // block)
    for begin in range(0, len(blocks), at_once):
        piece = blocks[begin : begin + at_once]
        piece -= half
        piece *= steps[begin : begin + at_once, None]
    return values


def grid_law(points: int, block: int, rounding: Rounding, spread: Literal["largest", "mean"]) -> Law:
    """What rounding to the grid loses.

    A value moves by at most a step, ``2 s / (points - 1)``, or half of one; s is at most the norm of the block. To
    nearest with zero on the grid, or with the mean as scale, no block loses more than it has. A hundredth is for
    rounding the scales.
    """
    step = 2 / (points - 1) * (1 if rounding == "stochastic" else 0.5)
    error = block**0.5 * step
    if rounding == "nearest":
        contracts = points % 2 or spread == "mean"
        error = 1.0 if spread == "mean" else min(error, 1.0) if contracts else error
        return Law(1.01 * error, SMALLEST, unbiased=False, loss=min(error**2, 1.0) if contracts else error**2)
    # Two places with chances p and 1 - p have a variance of at most a quarter of their distance squared; a sixth is
    # the mean over p. Of even values the largest of a block squared is about 2 ln(2 block) times the mean square.
    largest = 2 * math.log(2 * block)
    even = largest - 1 if points == 2 else largest * step**2 / 6
    return Law(1.01 * error, SMALLEST, loss=1.01 * block * step**2 / 4, even_loss=1.01 * even)


def pack_bits(codes: Codes, bits: Literal[1, 2, 4, 8]) -> bytes:
    """Whole numbers below ``2 ** bits``, the first in the lowest bits of a byte."""
    if bits == 8:
        return codes.tobytes()
    each = 8 // bits
    padded = np.zeros(-(-len(codes) // each) * each, dtype=np.uint8)
    padded[: len(codes)] = codes
    packed = padded[::each].copy()
    for place in range(1, each):
        packed |= padded[place::each] << np.uint8(bits * place)
    return packed.tobytes()


def unpack_bits(data: bytes, bits: Literal[1, 2, 4, 8], total: int) -> Codes:
    """The first `total` numbers that `pack_bits` packed."""
    packed = np.frombuffer(data, dtype=np.uint8)
    if bits == 8:
        return packed[:total]
    each = 8 // bits
    codes = np.empty((len(packed), each), dtype=np.uint8)
    for place in range(each):
        codes[:, place] = (packed >> np.uint8(bits * place)) & np.uint8(2**bits - 1)
    return codes.reshape(-1)[:total]


def packed_size(total: int, bits: int) -> int:
    """Bytes of `total` packed numbers."""
    return -(-total * bits // 8)


def block_sizes(total: int, block: int) -> int:
    """Bytes of the scales of `total` values."""
    return 2 * -(-total // block)


def scales_of(data: bytes) -> Any:
    """The scales as they were packed.

    Raises:
        FrameError: one is negative, infinite or NaN.
    """
    scales = np.frombuffer(data, dtype="<u2")
    if scales.size and int(scales.max()) > 0x7F7F:
        raise FrameError("section holds a scale that is negative, infinite or NaN")
    return scales

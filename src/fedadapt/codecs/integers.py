"""Integers of 8, 4, 2 or 1 bits with a scale for each block of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from fedadapt.codecs import grid
from fedadapt.codecs.codec import Codec, Key, Layout, Stage, count, flatten, nothing, unflatten
from fedadapt.codecs.grid import Rounding
from fedadapt.params import Params
from fedadapt.registry import register

Block = Annotated[int, Field(ge=8, le=65536)]


@register("codec", "int8")
def int8(*, block: Block = 256, rounding: Rounding = "stochastic") -> Codec:
    """8 bits a value: 255 points from minus to plus the block's largest magnitude; unbiased.

    Args:
        block: values that share a 16-bit scale.
        rounding: ``"stochastic"`` is unbiased; ``"nearest"`` loses less at once and is for error feedback.

    Source:
        D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, *QSGD: Communication-Efficient SGD via Gradient
        Quantization and Encoding*, NeurIPS 2017, section 3.1.

    Differs:
        The scale is the block's largest magnitude rather than its norm, which suits many levels.
    """
    return _integers(8, block, rounding)


@register("codec", "int4")
def int4(*, block: Block = 128, rounding: Rounding = "stochastic") -> Codec:
    """4 bits a value: 15 points from minus to plus the block's largest magnitude; unbiased. As `int8`."""
    return _integers(4, block, rounding)


@register("codec", "int2")
def int2(*, block: Block = 64, rounding: Rounding = "stochastic") -> Codec:
    """2 bits a value: 4 points without zero, unbiased; to nearest, 3 points with zero. As `int8`."""
    return _integers(2, block, rounding)


@register("codec", "int1")
def int1(*, block: Block = 64, rounding: Rounding = "stochastic") -> Codec:
    """1 bit a value, plus or minus the block's largest magnitude, unbiased; to nearest, the mean one with the sign.

    To nearest it is the scaled sign, which needs error feedback: the sum of what is lost does not fade by itself.

    Args:
        block: values that share a 16-bit scale.
        rounding: as of `int8`.

    Source:
        S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, *Error Feedback Fixes SignSGD and other Gradient
        Compression Schemes*, ICML 2019, algorithm 2, for nearest.
    """
    return _integers(1, block, rounding)


def _integers(bits: Literal[1, 2, 4, 8], block: int, rounding: Rounding) -> Codec:
    # With few points zero costs one of them; to nearest it is what keeps small values from growing.
    points = 2**bits - (bits > 2 or (bits == 2 and rounding == "nearest"))
    spread: Literal["largest", "mean"] = "mean" if bits == 1 and rounding == "nearest" else "largest"

    def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
        total = sum(tensor.numel() for tensor in params.values())
        scales, codes = grid.to_grid(
            flatten(params, block), points, block, rounding, key, total=total, spread=spread
        )
        return {}, (scales.tobytes(), grid.pack_bits(codes[:total], bits))

    def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
        del params, key
        codes = grid.unpack_bits(parts[1], bits, count(layout))
        return unflatten(grid.from_grid(grid.scales_of(parts[0]), codes, points, block), layout)

    def sizes(layout: Layout) -> tuple[int, ...]:
        total = count(layout)
        return grid.block_sizes(total, block), grid.packed_size(total, bits)

    name = f"int{bits}(block={block}, rounding={rounding})"
    return Codec(
        (Stage(name, encode, decode, nothing, sizes, grid.grid_law(points, block, rounding, spread)),)
    )

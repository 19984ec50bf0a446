"""Minus, zero or plus, five values in a byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedadapt.codecs import grid
from fedadapt.codecs.codec import Codec, Key, Layout, Stage, count, flatten, nothing, unflatten
from fedadapt.codecs.grid import Rounding
from fedadapt.codecs.integers import Block
from fedadapt.errors import FrameError
from fedadapt.params import Params
from fedadapt.registry import register

_POWERS = (1, 3, 9, 27, 81)


@register("codec", "ternary")
def ternary(*, block: Block = 64, rounding: Rounding = "stochastic") -> Codec:
    """Minus, zero or plus the block's largest magnitude; 1.6 bits a value and a 16-bit scale a block; unbiased.

    Args:
        block: values that share a scale.
        rounding: ``"stochastic"`` is unbiased; ``"nearest"`` keeps the values over half of the largest one.

    Source:
        W. Wen, C. Xu, F. Yan, C. Wu, Y. Wang, Y. Chen, H. Li, *TernGrad: Ternary Gradients to Reduce Communication
        in Distributed Deep Learning*, NeurIPS 2017, equations 2 and 3.

    Differs:
        A scale for each block rather than each layer, and no clipping.
    """

    def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
        total = sum(tensor.numel() for tensor in params.values())
        scales, codes = grid.to_grid(
            flatten(params, block), 3, block, rounding, key, total=total, spread="largest"
        )
        return {}, (scales.tobytes(), pack_trits(codes[:total]))

    def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
        del params, key
        codes = unpack_trits(parts[1], count(layout))
        return unflatten(grid.from_grid(grid.scales_of(parts[0]), codes, 3, block), layout)

    def sizes(layout: Layout) -> tuple[int, ...]:
        total = count(layout)
        return grid.block_sizes(total, block), -(-total // 5)

    name = f"ternary(block={block}, rounding={rounding})"
    return Codec((Stage(name, encode, decode, nothing, sizes, grid.grid_law(3, block, rounding, "largest")),))


def pack_trits(codes: grid.Codes) -> bytes:
    """Numbers from 0 to 2, five in a byte, the first as its lowest digit."""
    padded = np.zeros(-(-len(codes) // 5) * 5, dtype=np.uint8)
    padded[: len(codes)] = codes
    packed = np.zeros(len(padded) // 5, dtype=np.uint8)
    for place, power in enumerate(_POWERS):
        packed += padded[place::5] * np.uint8(power)
    return packed.tobytes()


def unpack_trits(data: bytes, total: int) -> grid.Codes:
    """The first `total` numbers that `pack_trits` packed.

    Raises:
        FrameError: a byte holds more than five digits.
    """
    packed = np.frombuffer(data, dtype=np.uint8)
    if packed.size and int(packed.max()) >= 3**5:
        raise FrameError(
            f"section holds the byte {int(packed.max())}, five ternary digits go up to {3**5 - 1}"
        )
    codes = np.empty((len(packed), 5), dtype=np.uint8)
    for place, power in enumerate(_POWERS):
        codes[:, place] = packed // np.uint8(power) % np.uint8(3)
    return codes.reshape(-1)[:total]

"""The largest values of each block, by their signs and where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedadapt.codecs import grid
from fedadapt.codecs.bfloat16 import round_up, widen
from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage, Vector, count, flatten, nothing, unflatten
from fedadapt.codecs.topk import Fraction, chosen
from fedadapt.errors import FrameError
from fedadapt.params import Params
from fedadapt.registry import register

Block = Annotated[int, Field(ge=8, le=256)]
Gain = Annotated[float, Field(ge=1, le=1.9)]
"""Twice the mean, rounded up, would lose more than there was."""


@register("codec", "sparse_ternary")
def sparse_ternary(*, keep: Fraction = 0.15, gain: Gain = 1.5, block: Block = 256) -> Codec:
    """The largest magnitudes of each block as their mean with the sign; the others are zero. For error feedback.

    9 bits for each value that is kept, a byte of which says how many before it are not: put `zstd` behind it, which
    leaves the entropy, ``keep + H(keep)`` bits a value: 0.6 for a tenth, 0.8 for 0.15 and 0.9 for 0.2, and a twentieth for the
    means. With a gain of 1 it loses 0.57, 0.47 and 0.39 of the squared norm of values that a rotation has made even.

    Args:
        keep: the share of a block that is not zero.
        gain: of the mean. 1 loses least; but what arrives is then a small step in the right direction, and in few rounds
            a larger one is worth its noise, most of all where a mean over clients takes that away.
        block: values that share a 16-bit mean. Each keeps as many: if the largest of a whole section were kept, layers
            that change little would send nothing.

    Source:
        F. Sattler, S. Wiedemann, K.-R. Müller, W. Samek, *Robust and Communication-Efficient Federated Learning from
        Non-IID Data*, IEEE TNNLS 31(9), 2020, algorithm 1.

    Differs:
        Blocks in the place of layers, a general coder of the run lengths in the place of Golomb's, and the gain.
    """

    def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
        del key
        means, runs, signs = [], [], []
        for piece in _pieces(flatten(params), block):
            width = piece.shape[1]
            first = width - chosen(width, keep)
            places = np.sort(np.argpartition(np.abs(piece), first, axis=1)[:, first:], axis=1)
            kept = np.take_along_axis(piece, places, axis=1)
            # Sums of the largest floats are beyond them.
            means.append((gain * np.abs(kept).mean(axis=1, dtype=np.float64)).astype(np.float32))
            runs.append((np.diff(places, axis=1, prepend=-1) - 1).astype(np.uint8).reshape(-1))
            signs.append((kept > 0).reshape(-1))
        if not means:
            return {}, (b"", b"", b"")
        packed = np.packbits(np.concatenate(signs), bitorder="little")
        return {}, (
            round_up(np.concatenate(means)).tobytes(),
            np.concatenate(runs).tobytes(),
            packed.tobytes(),
        )

    def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
        del params, key
        values = np.zeros(count(layout), dtype=np.float32)
        means = widen(grid.scales_of(parts[0]))
        runs = np.frombuffer(parts[1], dtype=np.uint8)
        signs = np.unpackbits(np.frombuffer(parts[2], dtype=np.uint8), bitorder="little")[: len(runs)]
        begin = done = 0
        for piece in _pieces(values, block):
            blocks, width = piece.shape
            shape = (blocks, chosen(width, keep))
            end = begin + shape[0] * shape[1]
            places = np.cumsum(runs[begin:end].reshape(shape), axis=1, dtype=np.int64) + np.arange(shape[1])
            if int(places[:, -1].max()) >= width:
                raise FrameError(f"section has a value behind the end of its block of {width}")
            both = np.where(
                signs[begin:end].reshape(shape),
                means[done : done + blocks, None],
                -means[done : done + blocks, None],
            )
            np.put_along_axis(piece, places, both, axis=1)
            begin, done = end, done + blocks
        return unflatten(values, layout)

    def sizes(layout: Layout) -> tuple[int, ...]:
        total = count(layout)
        kept = total // block * chosen(block, keep) + chosen(total % block, keep)
        return grid.block_sizes(total, block), kept, grid.packed_size(kept, 1)

    # Less than twice the mean magnitude, with the sign, leaves of what is kept no more than there was.
    name = f"sparse_ternary(keep={keep!r}, gain={gain!r}, block={block})"
    law = Law(1.01, grid.SMALLEST, unbiased=False, loss=1.0)
    return Codec((Stage(name, encode, decode, nothing, sizes, law),))


def _pieces(values: Vector, block: int) -> Iterator[Any]:
    """Views of the values: the whole blocks, and what is left over as a shorter one; none that is empty."""
    whole = len(values) // block * block
    if whole:
        yield values[:whole].reshape(-1, block)
    if whole < len(values):
        yield values[whole:].reshape(1, -1)

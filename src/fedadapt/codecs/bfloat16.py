"""The upper half of a 32-bit float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage, Vector, count, flatten, nothing, unflatten
from fedadapt.params import Params
from fedadapt.registry import register

_LARGEST = np.uint32(0x7F7F)
"""Of the finite ones, without sign."""

Halves = np.ndarray[Any, np.dtype[np.uint16]]


@register("codec", "bfloat16")
def bfloat16() -> Codec:
    """The upper 16 bits of the 32-bit float, rounded to nearest: 8 significant bits, the full range."""
    return Codec(
        (
            Stage(
                "bfloat16", encode, decode, nothing, sizes, Law(2.0**-8, 1e-38, unbiased=False, loss=2.0**-16)
            ),
        )
    )


def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
    """The rounded values; the largest float, which would round to infinity, becomes the largest bfloat16."""
    del key
    bits = flatten(params).view(np.uint32)
    sign = bits & np.uint32(0x80000000)
    size = bits ^ sign
    # Half of the last place, less one if the last bit is even: ties go to even.
    size += np.uint32(0x7FFF) + ((size >> 16) & 1)
    return {}, (((sign >> 16) | np.minimum(size >> 16, _LARGEST)).astype("<u2").tobytes(),)


def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
    """The tensors that `encode` packed."""
    del params, key
    return unflatten(widen(np.frombuffer(parts[0], dtype="<u2")), layout)


def sizes(layout: Layout) -> tuple[int, ...]:
    """2 bytes a value."""
    return (2 * count(layout),)


def round_up(values: Vector) -> Halves:
    """The next bfloat16 that is no smaller, for values >= 0; the largest one where there is none."""
    bits = (values.view(np.uint32).astype(np.uint64) + 0xFFFF) >> np.uint64(16)
    return np.minimum(bits, np.uint64(_LARGEST)).astype("<u2")


def widen(halves: Halves) -> Vector:
    """bfloat16 as 32-bit floats."""
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)

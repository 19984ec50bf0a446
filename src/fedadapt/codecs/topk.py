"""The largest values and where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage, count, flat, flatten, unflatten
from fedadapt.errors import FrameError
from fedadapt.params import Params
from fedadapt.registry import register

Fraction = Annotated[float, Field(gt=0, le=1)]
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


@register("codec", "topk")
def topk(*, fraction: Fraction = 0.01) -> Codec:
    """The largest magnitudes of a section; the others are zero. Biased: it is for error feedback.

    Of k indices below n about ``2 + log2(n / k)`` bits each are sent, of the values what the next stage makes of
    them. The squared norm that is kept is at least k / n of it all.

    Args:
        fraction: k / n; at least one value is sent.

    Source:
        S. U. Stich, J.-B. Cordonnier, M. Jaggi, *Sparsified SGD with Memory*, NeurIPS 2018, definition 2.1.
    """

    def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
        del key
        values = flatten(params)
        k = chosen(len(values), fraction)
        places = np.sort(np.argpartition(np.abs(values), len(values) - k)[len(values) - k :]) if k else _NONE
        return unflatten(values[places], flat(k)), (pack_indices(places, len(values)),)

    def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
        del key
        total = count(layout)
        values = np.zeros(total, dtype=np.float32)
        values[unpack_indices(parts[0], chosen(total, fraction), total)] = flatten(params)
        return unflatten(values, layout)

    def rest(layout: Layout) -> Layout:
        return flat(chosen(count(layout), fraction))

    def sizes(layout: Layout) -> tuple[int, ...]:
        return (index_bytes(chosen(count(layout), fraction), count(layout)),)

    law = Law((1 - fraction) ** 0.5, unbiased=fraction == 1, loss=1 - fraction)
    return Codec((Stage(f"topk(fraction={fraction!r})", encode, decode, rest, sizes, law),))


_NONE: Any = np.zeros(0, dtype=np.int64)


def chosen(total: int, fraction: float) -> int:
    """How many of `total` values a fraction is, rounded up."""
    return min(total, max(1, -int(-total * fraction // 1))) if total else 0


def index_bytes(k: int, total: int) -> int:
    """Bytes of k packed indices, exactly."""
    low, high = _widths(k, total)
    return -(-k * low // 8) + -(-high // 8) if k else 0


def pack_indices(places: Indices, total: int) -> bytes:
    """Ascending indices below `total`, Elias and Fano's way: low bits as they are, high ones in unary.

    Source:
        P. Elias, *Efficient Storage and Retrieval by Content and Address of Static Files*, Journal of the ACM 21(2),
        1974.
    """
    k = len(places)
    if not k:
        return b""
    low, high = _widths(k, total)
    shifts = np.arange(low, dtype=np.int64)
    lows = ((places[:, None] >> shifts) & 1).astype(np.uint8)
    marks = np.zeros(high, dtype=np.uint8)
    marks[(places >> low) + np.arange(k)] = 1
    return (
        np.packbits(lows.reshape(-1), bitorder="little").tobytes()
        + np.packbits(marks, bitorder="little").tobytes()
    )


def unpack_indices(data: bytes, k: int, total: int) -> Indices:
    """The k indices that `pack_indices` packed.

    Raises:
        FrameError: they are not k ascending indices below `total`.
    """
    if not k:
        return _NONE
    low, high = _widths(k, total)
    bits = np.frombuffer(data, dtype=np.uint8)
    middle = -(-k * low // 8)
    lows = np.unpackbits(bits[:middle], bitorder="little")[: k * low].reshape(k, low).astype(np.int64)
    marks = np.flatnonzero(np.unpackbits(bits[middle:], bitorder="little")[:high])
    if len(marks) != k:
        raise FrameError(f"section marks {len(marks)} places, its layout has {k}")
    places = ((marks - np.arange(k)) << low) + lows @ (1 << np.arange(low, dtype=np.int64))
    if places[-1] >= total or (np.diff(places) <= 0).any():
        raise FrameError(f"section's places are not ascending below {total}")
    return places


def _widths(k: int, total: int) -> tuple[int, int]:
    """Low bits of an index, and bits of all high parts together."""
    low = max(0, (total // k).bit_length() - 1) if k else 0
    return low, k + ((total - 1) >> low) if k else 0

"""Values at places that both ends find by themselves, so that no index is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage, count, flat, flatten, unflatten
from fedadapt.codecs.topk import Indices
from fedadapt.params import Params


def at_places(
    name: str,
    places: Callable[[int, Key], Indices],
    size: Callable[[int], int],
    law: Law,
    *,
    unbiased: bool,
) -> Codec:
    """Sends some of the values; the others are zero for who receives them.

    Args:
        name: of the codec, with its options.
        places: ``(n, key) -> indices`` of the values of n that are sent, sorted.
        size: how many of n those are.
        law: what it promises.
        unbiased: the values come times n over their number.
    """

    def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
        values = flatten(params)
        kept = values[places(len(values), key)]
        return unflatten(kept, flat(len(kept))), ()

    def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
        del parts
        total = count(layout)
        values = np.zeros(total, dtype=np.float32)
        kept = flatten(params)
        values[places(total, key)] = kept * np.float32(total / len(kept)) if unbiased and len(kept) else kept
        return unflatten(values, layout)

    def rest(layout: Layout) -> Layout:
        return flat(size(count(layout)))

    return Codec((Stage(name, encode, decode, rest, lambda layout: (), law),))

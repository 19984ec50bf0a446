"""Values at random places that both ends draw alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage, count, flat, flatten, unflatten
from fedadapt.codecs.topk import Fraction, Indices, chosen
from fedadapt.params import Params
from fedadapt.registry import register


@register("codec", "randomk")
def randomk(*, fraction: Fraction = 0.1, unbiased: bool = True) -> Codec:
    """A share of the values, at places drawn anew for each message; the others are zero. No index is sent.

    Args:
        fraction: k / n; at least one value is sent.
        unbiased: sends the values times n / k, so that the mean over draws is right. With error feedback, which
            brings back what was left out, they are to be sent as they are.

    Source:
        J. Konečný, H. B. McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon, *Federated Learning: Strategies
        for Improving Communication Efficiency*, arXiv 1610.05492, section 3, subsampling.
    """
    name = f"randomk(fraction={fraction!r}, unbiased={str(unbiased).lower()})"

    def places(total: int, key: Key) -> Indices:
        k = chosen(total, fraction)
        # The k smallest of n random words: every set of k places is as likely.
        return (
            np.sort(np.argpartition(key.words("randomk", total), k - 1)[:k]) if k else np.zeros(0, np.int64)
        )

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
        return flat(chosen(count(layout), fraction))

    gain = 1 / fraction if unbiased else 1.0
    law = Law(
        max(1.0, gain - 1),
        unbiased=unbiased or fraction == 1,
        gain=gain,
        loss=gain - 1 if unbiased else 1 - fraction,
    )
    return Codec((Stage(name, encode, decode, rest, lambda layout: (), law),))

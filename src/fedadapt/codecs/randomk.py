"""Values at random places that both ends draw alike."""

from __future__ import annotations

import numpy as np

from fedadapt.codecs.codec import Codec, Key, Law
from fedadapt.codecs.places import at_places
from fedadapt.codecs.topk import Fraction, Indices, chosen
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

    gain = 1 / fraction if unbiased else 1.0
    law = Law(
        max(1.0, gain - 1),
        unbiased=unbiased or fraction == 1,
        gain=gain,
        loss=gain - 1 if unbiased else 1 - fraction,
    )
    return at_places(name, places, lambda total: chosen(total, fraction), law, unbiased=unbiased)

"""A mask that all clients share and that moves on each round."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from fedadapt.codecs.codec import Codec, Key, Law
from fedadapt.codecs.places import at_places
from fedadapt.codecs.topk import Indices
from fedadapt.registry import register


@register("codec", "mask")
def mask(*, period: Annotated[int, Field(ge=1, le=10_000)] = 10, unbiased: bool = False) -> Codec:
    """One of `period` parts of the values in each round, the same for all clients; no index is sent.

    The values in a seeded order of the run, ``(step i + begin) mod n``, are sent in turn, as many in each round, and from
    the start again. After `period` rounds every value was sent, in the long run each as often as any other, and the clients
    of a round are averaged over the same values.

    Args:
        period: rounds until the first values come again.
        unbiased: sends the values times their number over that of the part. Without it what is left out is lost,
            unless error feedback keeps it until its turn.

    Source:
        J. Konečný and others, *Federated Learning: Strategies for Improving Communication Efficiency*, arXiv
        1610.05492, section 2, random mask.

    Differs:
        The mask is common to all clients, and the parts take turns instead of being drawn.
    """
    name = f"mask(period={period}, unbiased={str(unbiased).lower()})"

    def places(total: int, key: Key) -> Indices:
        size = -(-total // period)
        begin, *factors = (int(word) % max(1, total) for word in key.words("mask", 65, of_run=True))
        # Steps of a size without a common divisor visit every place once, in an order that need not be stored.
        step = next((factor for factor in factors if math.gcd(factor, total) == 1), 1)
        turns = (key.round * size + np.arange(size)) % max(1, total)
        return np.sort((turns * step + begin) % max(1, total))

    gain = float(period) if unbiased else 1.0
    law = Law(
        max(1.0, gain - 1) if period > 1 else 0.0,
        unbiased=unbiased or period == 1,
        gain=gain,
        loss=gain - 1 if unbiased else float(period > 1),
    )
    return at_places(name, places, lambda total: -(-total // period), law, unbiased=unbiased)

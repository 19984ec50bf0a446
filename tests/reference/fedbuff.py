"""FedBuff with rate 0.5 and weights of one over the root of one plus staleness."""

from __future__ import annotations

import math

from reference.literal import moved, numbers


def step(state, updates, num_clients):
    """Every update counts by how late it is, over the size of the buffer."""
    by = [0.0] * len(numbers(state["model"]))
    for update in updates:
        factor = 0.5 / len(updates) / math.sqrt(1 + getattr(update, "staleness", 0))
        by = [b + factor * d for b, d in zip(by, numbers(update.streams["delta"]), strict=True)]
    return {"model": moved(state["model"], by)}

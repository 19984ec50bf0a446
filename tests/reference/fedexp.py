"""FedExP with epsilon 0.001."""

from __future__ import annotations

from reference.literal import equal, moved, numbers


def step(state, updates, num_clients):
    """The rate is half the mean square of the updates over the square of their mean, but at least 1."""
    delta = equal(updates)
    squares = sum(sum(d * d for d in numbers(update.streams["delta"])) for update in updates)
    rate = max(1.0, squares / (2 * len(updates) * (sum(d * d for d in delta) + 0.001)))
    return {"model": moved(state["model"], [rate * d for d in delta])}

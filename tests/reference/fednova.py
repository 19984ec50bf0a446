"""FedNova with plain local descent, where a client's normaliser is its number of steps."""

from __future__ import annotations

from reference.literal import moved, numbers, plain_client


def client(client):
    """The number of steps goes with the update."""
    streams, memory, _, steps = plain_client(client)
    return streams, memory, {"path_length": float(steps)}, steps


def step(state, updates, num_clients):
    """The mean of the directions, each over its own length, times the mean length."""
    total = sum(update.num_examples for update in updates)
    by = [0.0] * len(numbers(state["model"]))
    effective = sum(u.num_examples / total * u.scalars["path_length"] for u in updates)
    for update in updates:
        share = update.num_examples / total / update.scalars["path_length"]
        by = [b + effective * share * d for b, d in zip(by, numbers(update.streams["delta"]), strict=True)]
    return {"model": moved(state["model"], by)}

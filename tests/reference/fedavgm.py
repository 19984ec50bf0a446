"""FedAvgM with momentum 0.8 and rate 0.5."""

from __future__ import annotations

from reference.literal import by_size, like, moved, numbers


def streams(model):
    """No velocity at first."""
    return {"velocity": {name: 0 * tensor for name, tensor in model.items()}}


def step(state, updates, num_clients):
    """The velocity decays, takes the mean up, and moves the model."""
    pairs = zip(numbers(state["velocity"]), by_size(updates), strict=True)
    velocity = [0.8 * old + delta for old, delta in pairs]
    return {
        "model": moved(state["model"], [0.5 * v for v in velocity]),
        "velocity": like(velocity, state["model"]),
    }

"""SCAFFOLD, option II, with server rate 0.7."""

from __future__ import annotations

from reference.literal import equal, like, mean, moved, numbers


def streams(model):
    """The server's variate starts at zero."""
    return {"control": {name: 0 * tensor for name, tensor in model.items()}}


def client(client):
    """Steps are corrected; the own variate becomes the mean gradient seen, less what is common."""
    common = client.download["control"]
    own = client.memory.get("control", {name: 0 * tensor for name, tensor in common.items()})

    def direction(params, batch):
        gradient = client.gradient(params, batch)
        return {name: g - own[name] + common[name] for name, g in gradient.items()}

    params, steps = client.descend(direction)
    new = {}
    for name, tensor in params.items():
        new[name] = own[name] - common[name] + (client.download["model"][name] - tensor) / (steps * client.lr)
    change = {name: tensor - own[name] for name, tensor in new.items()}
    return {"delta": client.difference(params), "control_delta": change}, {"control": new}, {}, steps


def step(state, updates, num_clients):
    """The model moves by the equal mean, the variate by the sum over all that are registered."""
    ones = [1.0] * len(updates)
    change = [len(updates) / num_clients * c for c in mean(updates, ones, "control_delta")]
    control = [c + d for c, d in zip(numbers(state["control"]), change, strict=True)]
    model = moved(state["model"], [0.7 * d for d in equal(updates)])
    return {"model": model, "control": like(control, model)}

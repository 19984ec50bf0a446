"""FedDyn with alpha 0.3."""

from __future__ import annotations

from reference.literal import like, numbers

ALPHA = 0.3


def streams(model):
    """The server's drift starts at zero."""
    return {"drift": {name: 0 * tensor for name, tensor in model.items()}}


def client(client):
    """The loss of the paper is written down and differentiated: loss - <dual, w> + alpha / 2 |w - start|^2."""
    begin = client.download["model"]
    dual = client.memory.get("dual", {name: 0 * tensor for name, tensor in begin.items()})

    def loss(params, batch):
        linear = sum((dual[name] * params[name]).sum() for name in params)
        spring = sum(((params[name] - begin[name]) ** 2).sum() for name in params)
        return client.loss(params, batch) - linear + ALPHA / 2 * spring

    params, steps = client.descend(lambda params, batch: client.gradient(params, batch, loss))
    new = {name: dual[name] - ALPHA * (params[name] - begin[name]) for name in params}
    return {"delta": client.difference(params)}, {"dual": new}, {}, steps


def step(state, updates, num_clients):
    """The drift takes the sum of the ways; the model is the mean of the clients' models less the drift."""
    begin = numbers(state["model"])
    ends = [[b + d for b, d in zip(begin, numbers(u.streams["delta"]), strict=True)] for u in updates]
    drift = numbers(state["drift"])
    for end in ends:
        drift = [h - ALPHA / num_clients * (e - b) for h, e, b in zip(drift, end, begin, strict=True)]
    means = [sum(column) / len(ends) for column in zip(*ends, strict=True)]
    model = [m - h / ALPHA for m, h in zip(means, drift, strict=True)]
    return {"model": like(model, state["model"]), "drift": like(drift, state["model"])}

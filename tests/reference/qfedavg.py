"""q-FedAvg with q = 1.5."""

from __future__ import annotations

from reference.literal import moved, numbers, plain_client

Q = 1.5


def client(client):
    """The loss on all samples at the start goes with the update."""
    streams, memory, _, steps = plain_client(client)
    loss = float(client.loss(client.start, client.everything()))
    return streams, memory, {"start_loss": loss, "lr": client.lr}, steps


def step(state, updates, num_clients):
    """In the paper's words: Delta_k = F^q L (w - w_k), h_k = q F^(q-1) |L (w - w_k)|^2 + L F^q."""
    top, bottom = [0.0] * len(numbers(state["model"])), 0.0
    for update in updates:
        loss, lipschitz = update.scalars["start_loss"], 1 / update.scalars["lr"]
        way = [-lipschitz * d for d in numbers(update.streams["delta"])]
        top = [t + loss**Q * w for t, w in zip(top, way, strict=True)]
        bottom += Q * loss ** (Q - 1) * sum(w * w for w in way) + lipschitz * loss**Q
    return {"model": moved(state["model"], [-t / bottom for t in top])}

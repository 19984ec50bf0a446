"""FedRS with alpha = 0.3."""

from __future__ import annotations

import torch
from reference import fedavg

step = fedavg.step


def client(client):
    """The score of every class that the client has no sample of is shrunk."""
    own = set(client.labels)

    def restricted(logits):
        columns = [logits[:, c] * (1.0 if c in own else 0.3) for c in range(logits.shape[1])]
        return torch.stack(columns, dim=1)

    def along(params, batch):
        return client.gradient(params, batch, lambda p, b: client.loss(p, b, restricted))

    params, steps = client.descend(along)
    return {"delta": client.difference(params)}, {}, {}, steps

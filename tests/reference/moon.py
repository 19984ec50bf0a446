"""MOON with mu = 0.7 and temperature 0.5, sample by sample."""

from __future__ import annotations

import torch
from reference import fedavg

step = fedavg.step


def client(client):
    """Cross-entropy and the contrast between the global and the previous model."""
    model = client.party.model
    others = [client.start, client.memory.get("previous", dict(model.start))]

    def features(params, images):
        return model.with_features(
            {name: tensor[None] for name, tensor in params.items()}, images, mask=None, training=False
        )[1]

    def cosine(a, b):
        return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())

    def loss(params, batch):
        drawn, away = (features(other, batch[0]).detach() for other in others)
        contrast = 0.0
        for mine, good, bad in zip(features(params, batch[0]), drawn, away, strict=True):
            up, down = torch.exp(cosine(mine, good) / 0.5), torch.exp(cosine(mine, bad) / 0.5)
            contrast = contrast - torch.log(up / (up + down))
        return client.loss(params, batch) + 0.7 * contrast / len(batch[1])

    params, steps = client.descend(lambda params, batch: client.gradient(params, batch, loss))
    return {"delta": client.difference(params)}, {"previous": params}, {}, steps

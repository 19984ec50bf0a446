"""FedSAM with rho = 0.1, and FedASAM with rho = 0.3 and eta = 0.2."""

from __future__ import annotations

import math
from types import SimpleNamespace

from reference import fedavg
from reference.literal import like, numbers


def _make(perturb):
    def client(client):
        def direction(params, batch):
            away = perturb(numbers(params), numbers(client.gradient(params, batch)))
            there = like([w + e for w, e in zip(numbers(params), away, strict=True)], params)
            return client.gradient(there, batch)

        params, steps = client.descend(direction)
        return {"delta": client.difference(params)}, {}, {}, steps

    return SimpleNamespace(client=client, step=fedavg.step)


def _sam(weights, gradient):
    length = math.sqrt(sum(g * g for g in gradient))
    return [0.1 * g / length for g in gradient]


def _asam(weights, gradient):
    sizes = [abs(w) + 0.2 for w in weights]
    length = math.sqrt(sum((t * g) ** 2 for t, g in zip(sizes, gradient, strict=True)))
    return [0.3 * t * t * g / length for t, g in zip(sizes, gradient, strict=True)]


fedsam = _make(_sam)
fedasam = _make(_asam)

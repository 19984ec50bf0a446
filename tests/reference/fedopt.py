"""FedAdam, FedYogi and FedAdagrad with rate 0.1, beta1 0.6, beta2 0.7 and tau 0.05, value by value."""

from __future__ import annotations

import math
from types import SimpleNamespace

from reference.literal import by_size, like, moved, numbers

LR, BETA1, BETA2, TAU = 0.1, 0.6, 0.7, 0.05


def _sign(x):
    return (x > 0) - (x < 0)


def _make(second_moment):
    def streams(model):
        zeros = {name: 0 * tensor for name, tensor in model.items()}
        return {"first": zeros, "second": zeros}

    def step(state, updates, num_clients):
        first, second, by = [], [], []
        for m, v, d in zip(numbers(state["first"]), numbers(state["second"]), by_size(updates), strict=True):
            first.append(BETA1 * m + (1 - BETA1) * d)
            second.append(second_moment(v, d))
            by.append(LR * first[-1] / (math.sqrt(second[-1]) + TAU))
        model = state["model"]
        return {"model": moved(model, by), "first": like(first, model), "second": like(second, model)}

    return SimpleNamespace(streams=streams, step=step)


fedadam = _make(lambda v, d: BETA2 * v + (1 - BETA2) * d * d)
fedyogi = _make(lambda v, d: v - (1 - BETA2) * d * d * _sign(v - d * d))
fedadagrad = _make(lambda v, d: v + d * d)

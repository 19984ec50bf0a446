"""Robust aggregation value by value: every rule from the rows of what the clients changed."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace

from reference.literal import by_size, moved, numbers


def _rule(aggregate, least=1):
    def step(state, updates, num_clients):
        if len(updates) < least:
            return state
        rows = [numbers(update.streams["delta"]) for update in updates]
        return {"model": moved(state["model"], aggregate(rows))}

    return SimpleNamespace(step=step)


def _average(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _trimmed(rows, fraction):
    cut = math.floor(fraction * len(rows))
    return [
        sum(sorted(column)[cut : len(column) - cut]) / (len(column) - 2 * cut)
        for column in zip(*rows, strict=True)
    ]


def _square(one, other):
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _krum_order(rows, attackers):
    scores = []
    for i, row in enumerate(rows):
        others = sorted(_square(row, other) for j, other in enumerate(rows) if j != i)
        scores.append((sum(others[: max(1, len(rows) - attackers - 2)]), i))
    return [i for _, i in sorted(scores)]


def _bulyan(rows, attackers):
    left, picked = list(rows), []
    while len(picked) < len(rows) - 2 * attackers:
        picked.append(left.pop(_krum_order(left, attackers)[0]))
    keep, result = len(picked) - 2 * attackers, []
    for column in zip(*picked, strict=True):
        middle = statistics.median(column)
        result.append(sum(sorted(sorted(column), key=lambda v: abs(v - middle))[:keep]) / keep)
    return result


def _geometric(rows, iterations=32, smoothing=1e-6):
    middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    point = _average(sorted(rows, key=lambda row: _square(row, middle))[: len(rows) // 2 + 1])
    for _ in range(iterations):
        weights = [1 / max(smoothing, math.sqrt(_square(row, point))) for row in rows]
        point = [
            sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights)
            for column in zip(*rows, strict=True)
        ]
    return point


def _clipping(state, updates, num_clients):
    shortened = []
    for update in updates:
        length = math.sqrt(sum(v * v for v in numbers(update.streams["delta"])))
        factor = min(1.0, 0.5 / length) if length else 1.0
        delta = {name: factor * tensor for name, tensor in update.streams["delta"].items()}
        shortened.append(SimpleNamespace(num_examples=update.num_examples, streams={"delta": delta}))
    return {"model": moved(state["model"], by_size(shortened))}


median = _rule(lambda rows: [statistics.median(column) for column in zip(*rows, strict=True)])
trimmed_mean = _rule(lambda rows: _trimmed(rows, 0.25))
krum = _rule(lambda rows: rows[_krum_order(rows, 1)[0]], least=5)
multi_krum = _rule(lambda rows: _average([rows[i] for i in _krum_order(rows, 1)[:2]]), least=5)
bulyan = _rule(lambda rows: _bulyan(rows, 1), least=7)
geometric_median = _rule(_geometric)
norm_clipping = SimpleNamespace(step=_clipping)

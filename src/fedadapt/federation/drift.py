"""How far apart the clients of a round train."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch

from fedadapt.algorithms import Update
from fedadapt.params import Params, as_vector

BLOCK = 2**18
"""Values of all updates together that are looked at at once, so that they stay in the cache."""


def measure_drift(updates: Sequence[Update], moving: Collection[str] = ()) -> dict[str, float]:
    """How long the clients' updates are, and how far they point the same way.

    ``delta_norm`` is the mean over clients of ``|delta_k|``, ``delta_cosine`` that of the cosine of the angle between
    `delta_k` and their mean, weighted by samples, as federated averaging takes it: 1 if all pull together, about
    ``1 / sqrt(n)`` if n clients pull in unrelated directions. A cosine is left out where a length is zero.

    Args:
        updates: those that count in a round.
        moving: names of running statistics, which no gradient moves; left out.

    Returns:
        The two by name; nothing without updates.

    Example:
        >>> import torch
        >>> deltas = [torch.tensor([3.0, 4.0]), torch.tensor([3.0, -4.0])]
        >>> measure_drift([Update(k, 1, 1, {"delta": {"w": d}}) for k, d in enumerate(deltas)])
        {'delta_norm': 5.0, 'delta_cosine': 0.6}
    """
    if not updates:
        return {}
    vectors = [as_vector(update.streams["delta"]) for update in updates]
    counts = torch.tensor([update.num_examples for update in updates], dtype=torch.float64)
    weights = counts / counts.sum()
    squares, products = torch.zeros(2, len(updates), dtype=torch.float64)
    whole = torch.zeros((), dtype=torch.float64)
    for begin, end in _spans(updates[0].streams["delta"], moving):
        for own in zip(
            *(vector[begin:end].split(max(1, BLOCK // len(updates))) for vector in vectors), strict=True
        ):
            deltas = torch.stack(own).double()
            mean = weights @ deltas
            squares += deltas.square().sum(1)
            products += deltas @ mean
            whole += mean @ mean
    lengths = squares.sqrt()
    bases = lengths * whole.sqrt()
    found = {"delta_norm": math.fsum(lengths.tolist()) / len(updates)}
    cosines = (products[bases > 0] / bases[bases > 0]).tolist()
    return found | ({"delta_cosine": math.fsum(cosines) / len(cosines)} if cosines else {})


def _spans(params: Params, left_out: Collection[str]) -> list[tuple[int, int]]:
    """Where the values lie, as one vector, of all tensors but those left out."""
    spans, place = [(0, 0)], 0
    for name, tensor in params.items():
        if name not in left_out:
            begin = spans.pop()[0] if spans[-1][1] == place else place
            spans.append((begin, place + tensor.numel()))
        place += tensor.numel()
    return spans

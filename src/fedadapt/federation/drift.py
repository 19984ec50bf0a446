"""How far apart the clients of a round train."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from fedadapt.algorithms import Update
from fedadapt.params import as_vector, norm, weighted_mean


def measure_drift(updates: Sequence[Update], moving: Collection[str] = ()) -> dict[str, float]:
    """How long the clients' updates are, and how far they point the same way.

    ``delta_norm`` is the mean over clients of ``|delta_k|``, ``delta_cosine`` that of the cosine of the angle between
    `delta_k` and their mean, weighted by samples, as federated averaging takes it: 1 if all pull together, about
    ``1 / sqrt(n)`` if n clients pull in unrelated directions. A cosine is left out where a length is zero. The mean
    is the only thing as large as a model that is held besides the updates.

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
    deltas = [{n: t for n, t in u.streams["delta"].items() if n not in moving} for u in updates]
    mean = weighted_mean((u.num_examples, d) for u, d in zip(updates, deltas, strict=True))
    lengths, whole, way = [norm(delta) for delta in deltas], norm(mean), as_vector(mean).double()
    cosines = [
        float(as_vector({name: delta[name] for name in mean}).double() @ way) / (length * whole)
        for delta, length in zip(deltas, lengths, strict=True)
        if length * whole
    ]
    found = {"delta_norm": math.fsum(lengths) / len(lengths)}
    return found | ({"delta_cosine": math.fsum(cosines) / len(cosines)} if cosines else {})

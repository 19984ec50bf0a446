"""How far apart the clients of a round train."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from fedadapt.algorithms import Update
from fedadapt.params import Params, as_vector, norm, weighted_mean


def measure_drift(updates: Sequence[Update], moving: Collection[str] = ()) -> dict[str, float]:
    """How long the clients' updates are, and how far they point the same way.

    ``delta_norm`` is the mean over clients of ``|delta_k|``, ``delta_cosine`` that of the cosine of the angle between
    `delta_k` and their mean, weighted by samples, as federated averaging takes it: 1 if all pull together, about
    ``1 / sqrt(n)`` if n clients pull in unrelated directions. A cosine is left out where a length is zero. Besides
    the updates no more is held than the mean, twice, and one update at a time.

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
    names = [name for name in updates[0].streams["delta"] if name not in moving]

    def deltas() -> Iterator[Params]:
        """Each client's, as one vector."""
        for update in updates:
            own = update.streams["delta"]
            yield {"": as_vector({name: own[name] for name in names})}

    mean = weighted_mean(zip((update.num_examples for update in updates), deltas(), strict=True))
    whole, way = norm(mean), mean[""].double()
    lengths, cosines = list[float](), list[float]()
    for delta in deltas():
        lengths.append(norm(delta))
        if lengths[-1] * whole:
            cosines.append(float(delta[""].double() @ way) / (lengths[-1] * whole))
    found = {"delta_norm": math.fsum(lengths) / len(lengths)}
    return found | ({"delta_cosine": math.fsum(cosines) / len(cosines)} if cosines else {})

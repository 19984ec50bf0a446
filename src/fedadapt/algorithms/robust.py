"""What robust aggregation rules share: updates side by side, their distances, and how many there must be.

A robust rule takes no client's word for its number of samples: all updates weigh the same.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fedadapt.algorithms.algorithm import Gathered
from fedadapt.params import Params


def stacked(gathered: Gathered, name: str) -> Float[Tensor, "N ..."]:
    """One tensor of all N updates, along a new first axis, in float64."""
    return torch.stack([update.streams["delta"][name].double() for update in gathered.updates])


def by_coordinate(gathered: Gathered, rows: list[int] | None = None) -> dict[str, Float[Tensor, "N ..."]]:
    """Every tensor of the updates at `rows`, or of all, with the values of each coordinate sorted over the clients."""
    found = {name: stacked(gathered, name) for name in gathered.updates[0].streams["delta"]}
    return {name: (t if rows is None else t[rows]).sort(0).values for name, t in found.items()}


def as_sent(values: Params, gathered: Gathered) -> Params:
    """`values` in the types in which the updates came."""
    return {name: values[name].to(t.dtype) for name, t in gathered.updates[0].streams["delta"].items()}


def mean_of(gathered: Gathered, rows: list[int]) -> Params:
    """The equal mean of the updates at `rows`."""
    names = gathered.updates[0].streams["delta"]
    return as_sent({name: stacked(gathered, name)[rows].mean(0) for name in names}, gathered)


def squared_distances(gathered: Gathered) -> Float[Tensor, "N N"]:
    """Between every two updates, over all their values together."""
    count = len(gathered.updates)
    total = torch.zeros(count, count, dtype=torch.float64)
    for name in gathered.updates[0].streams["delta"]:
        flat = stacked(gathered, name).reshape(count, -1).cpu()
        # By differences, not by products: those would lose what is small beside a large common part.
        total += torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
    return total


def krum_scores(distances: Float[Tensor, "N N"], attackers: int) -> Float[Tensor, " N"]:
    """For each update the sum of its squared distances to the ``N - attackers - 2`` nearest others."""
    count = len(distances)
    near = distances.sort(1).values[:, 1 : max(2, count - attackers - 1)]
    return near.sum(1)

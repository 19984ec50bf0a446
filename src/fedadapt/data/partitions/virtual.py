"""Virtual clients: each draws its samples from the whole, so that there may be any number of them."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition
from fedadapt.errors import DataError
from fedadapt.registry import register
from fedadapt.seeds import Seeds

CUT = 3.0
"""Standard deviations at which sizes are cut off: so no client is more than 90 times the mean, whatever the spread."""


@register("partition", "virtual")
def virtual(
    *,
    size: Annotated[int, Field(ge=1)] = 50,
    sigma: Annotated[float, Field(ge=0, le=10)] = 0.0,
    alpha: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None,
) -> Partition:
    """Any number of clients, each with samples of its own drawing, so that clients overlap and cost nothing until asked.

    Client k has ``n_k = size * exp(sigma z_k - sigma^2 / 2)`` samples, z_k standard normal, at least one and at most
    all; its classes are ``q_k ~ Dirichlet(alpha p)`` with p the shares of the classes in the set. What it holds
    depends on the seed and its number alone. Within a client no sample comes twice.

    Args:
        size: mean samples of a client; the cut at 3 lowers the mean to 0.92 of it at a sigma of 2, to 0.62 at 3.
        sigma: spread of sizes on a logarithmic scale; 0 gives all the same.
        alpha: concentration of classes; none for samples at random.

    Source:
        T.-M. H. Hsu, H. Qi, M. Brown, *Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification*, arXiv 1909.06335, section 3.

    Differs:
        Clients draw from the whole set and not from what the clients before them left, which makes them independent
        of each other. A class that a client has all samples of gives way to the others. z is cut off at 3.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        if num_clients < 1 or size > len(split):
            raise DataError(
                f"partition 'virtual' cannot give each of {num_clients} clients {size} of {len(split)} samples; "
                f"at least one client and a size of at most {len(split)} are possible"
            )
        order = split.labels.argsort(stable=True).numpy()
        totals = torch.bincount(split.labels).numpy()
        starts = totals.cumsum() - totals

        def size_of(client: int) -> int:
            return _size(seeds.normal("client size", client=client), size, sigma, len(split))

        def of(client: int) -> Int64[Tensor, " _"]:
            generator = seeds.numpy("client samples", client=client)
            if alpha is None:
                places = generator.choice(len(split), size_of(client), replace=False)
            else:
                counts = _counts(totals, size_of(client), alpha, generator)
                places = np.concatenate(
                    [
                        order[start + generator.choice(total, count, replace=False)]
                        for start, total, count in zip(starts, totals, counts, strict=True)
                    ]
                )
            return torch.from_numpy(np.sort(places).astype(np.int64))

        largest = _size(CUT, size, sigma, len(split))
        return Holdings.drawn(
            num_clients, of, size_of, largest, f"virtual {size} {sigma} {alpha} {seeds.root}"
        )

    return deal


def _size(z: float, size: int, sigma: float, most: int) -> int:
    """The size of a client from a standard normal number."""
    z = min(max(z, -CUT), CUT)
    return min(max(round(size * math.exp(sigma * z - sigma**2 / 2)), 1), most)


def _counts(
    totals: NDArray[np.int64], size: int, alpha: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """How many samples of each class a client draws, no more than there are."""
    known = totals > 0
    shares = np.zeros(len(totals))
    shares[known] = generator.dirichlet(alpha * totals[known] / totals.sum())
    counts = np.zeros_like(totals)
    while (missing := size - int(counts.sum())) > 0:
        open_ = counts < totals
        weights = np.where(open_, shares, 0.0)
        # With a small alpha the classes still open may have no share at all.
        weights = weights if weights.sum() > 0 else (totals - counts).astype(float)
        counts = np.minimum(counts + generator.multinomial(missing, weights / weights.sum()), totals)
    return counts

"""What a partition is, and how the partitioners of flwr-datasets are driven."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.errors import DataError
from fedadapt.seeds import Seeds

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


@runtime_checkable
class Partition(Protocol):
    """Deals the samples of a split out to clients."""

    def __call__(self, split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        """What each client holds; together they hold every sample exactly once, unless the partition says otherwise.

        Args:
            split: what to deal out.
            num_clients: K, from 1 to the number of samples.
            seeds: the same seeds give the same partition.

        Raises:
            DataError: the split cannot be dealt out to so many clients in this way.
        """
        ...


def check_clients(split: Split, num_clients: int, min_size: int = 1) -> None:
    """Checks that every client can have `min_size` samples.

    Raises:
        DataError: there are too few samples, or no clients.
    """
    most = len(split) // min_size
    if not 1 <= num_clients <= most:
        raise DataError(
            f"cannot deal {len(split)} samples out to {num_clients} clients with at least {min_size} each; "
            f"1 to {most} clients are possible"
        )


def by_domain(
    split: Split, num_clients: int, name: str, min_size: int = 1
) -> tuple[list[Int64[Tensor, " _"]], int]:
    """The samples of each domain, ascending, and how many clients are to share one.

    Args:
        split: what to deal out.
        num_clients: K.
        name: of the partition, for messages.
        min_size: samples that every client has at least.

    Raises:
        DataError: there are no domains, or they cannot be shared equally.
    """
    check_clients(split, num_clients)
    if split.domains is None:
        raise DataError(
            f"partition {name!r} needs to know where each image comes from, but the data set has no domains; "
            "use a source with domains, or partition 'iid' or 'dirichlet'"
        )
    known, counts = split.domains.unique(return_counts=True)
    if num_clients % len(known):
        raise DataError(
            f"partition {name!r} cannot deal {len(known)} domains out to {num_clients} clients; "
            f"the number of clients must be {len(known)} or a multiple of it"
        )
    each, smallest = num_clients // len(known), int(counts.min())
    if smallest < each * min_size:
        raise DataError(
            f"partition {name!r} cannot deal a domain of {smallest} samples out to {each} clients; "
            f"use at most {smallest // min_size * len(known)} clients"
        )
    return [(split.domains == domain).nonzero().squeeze(1) for domain in known], each


def deal_sizes(split: Split, weights: NDArray[np.float64], min_size: int, seeds: Seeds) -> Holdings:
    """Random samples to clients of given sizes: `min_size` each, and the rest in proportion to `weights`.

    What rounding down leaves goes to the largest remainders, ties to the lower number.

    Args:
        split: what to deal out; at least `min_size` samples a client.
        weights: of each client; not negative, not all zero.
        min_size: samples that every client has at least.
        seeds: of the order.
    """
    rest = len(split) - len(weights) * min_size
    exact = rest * (weights / weights.sum())
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: rest - int(sizes.sum())]] += 1
    sizes += min_size

    def make() -> Partitioner:
        from flwr_datasets.partitioner import SizePartitioner

        return SizePartitioner(sizes.tolist())

    return drive(make, split, len(weights), seeds)


def drive(make: Callable[[], Partitioner], split: Split, num_clients: int, seeds: Seeds) -> Holdings:
    """The partition that a partitioner of flwr-datasets makes of a split.

    It is shown the samples in a random order: flwr-datasets deals them out in the order they come, so that a
    file sorted by class, camera or writer would give clients that differ in more than was asked for.

    Args:
        make: imports flwr_datasets and makes the partitioner; the column of labels is called ``"label"``.
        split: what to deal out.
        num_clients: K.
        seeds: of the order.

    Raises:
        DataError: the partitioner gives up, or loses or repeats samples.
    """
    # Read once, when flwr_datasets is imported: fedadapt tells no third party what it is used for. A user who
    # wants Flower to know has set the variable already.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    import datasets

    order = torch.randperm(len(split), generator=seeds.torch("partition order"))
    table = {"index": order.numpy(), "label": split.labels[order].numpy()}
    with warnings.catch_warnings():
        # One long warning for each draw that is repeated; the outcome is checked below.
        warnings.simplefilter("ignore")
        try:
            partitioner = make()
            partitioner.dataset = datasets.Dataset.from_dict(table)
            parts = [partitioner.load_partition(client) for client in range(num_clients)]
        except ValueError as error:
            raise DataError(
                f"cannot deal {len(split)} samples out to {num_clients} clients: {error}"
            ) from error
    clients = [torch.from_numpy(part.with_format("numpy")[:]["index"]).sort().values for part in parts]
    if not torch.equal(torch.cat(clients).sort().values, torch.arange(len(split))):
        raise DataError(
            f"dealing {len(split)} samples out to {num_clients} clients lost or repeated some; "
            "the draw is degenerate, use a milder skew or fewer clients"
        )
    return Holdings.dealt(clients)

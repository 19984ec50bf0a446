"""Every client gets a random sample of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition, check_clients, drive
from fedadapt.registry import register
from fedadapt.seeds import Seeds

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


@register("partition", "iid")
def iid() -> Partition:
    """Equal shares at random: clients differ by chance alone, and in size by one sample at most.

    Differs:
        From ``IidPartitioner`` of flwr-datasets, which cuts the set as it comes into contiguous pieces, by
        shuffling it first.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        def make() -> Partitioner:
            from flwr_datasets.partitioner import IidPartitioner

            return IidPartitioner(num_partitions=num_clients)

        check_clients(split, num_clients)
        return drive(make, split, num_clients, seeds)

    return deal

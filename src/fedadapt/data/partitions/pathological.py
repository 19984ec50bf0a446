"""Label skew: every client holds exactly so many classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition, check_clients, drive
from fedadapt.errors import DataError
from fedadapt.registry import register
from fedadapt.seeds import Seeds

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


@register("partition", "pathological")
def pathological(*, classes: Annotated[int, Field(ge=1)] = 2) -> Partition:
    """Label skew: each client holds exactly `classes` classes, and all who hold a class share it equally.

    Client k holds class ``k mod D`` and others drawn at random; of D classes none is left out, which takes at least
    D clients. Partition 'shards' does nearly the same with fewer.

    Args:
        classes: c, of each client.

    Source:
        Q. Li, Y. Diao, Q. Chen, B. He, *Federated Learning on Non-IID Data Silos: An Experimental Study*, ICDE 2022,
        section 4 ("#C = c"), as ``PathologicalPartitioner`` of flwr-datasets implements it.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        def make() -> Partitioner:
            from flwr_datasets.partitioner import PathologicalPartitioner

            return PathologicalPartitioner(
                num_partitions=num_clients,
                partition_by="label",
                num_classes_per_partition=classes,
                class_assignment_mode="first-deterministic",
                seed=seeds.derive("partition"),
            )

        check_clients(split, num_clients)
        known = len(split.labels.unique())
        if classes > known or num_clients < known:
            raise DataError(
                f"partition 'pathological' cannot give each of {num_clients} clients {classes} of {known} classes and "
                f"leave none out; use at most {known} classes and at least {known} clients, or partition 'shards'"
            )
        return drive(make, split, num_clients, seeds)

    return deal

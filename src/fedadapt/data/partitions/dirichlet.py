"""Label skew: each class is divided between the clients by a draw from a Dirichlet distribution."""

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


@register("partition", "dirichlet")
def dirichlet(
    *,
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5,
    min_size: Annotated[int, Field(ge=1)] = 1,
    balanced: bool = False,
) -> Partition:
    """Label skew: of each class d, client k gets the share ``q_dk`` with ``q_d ~ Dirichlet(alpha, ..., alpha)``.

    Args:
        alpha: concentration. Below 0.1 most clients hold one or two classes; above 100 it is nearly IID.
        min_size: samples that every client has at least; the draw is repeated up to ten times to reach it.
        balanced: whether a client that already has more than an average share gets no further class. Sizes
            become more equal, and labels more skewed than `alpha` says.

    Source:
        M. Yurochkin et al., *Bayesian Nonparametric Federated Learning of Neural Networks*, ICML 2019,
        section 4, as ``DirichletPartitioner`` of flwr-datasets implements it.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        def make() -> Partitioner:
            from flwr_datasets.partitioner import DirichletPartitioner

            return DirichletPartitioner(
                num_partitions=num_clients,
                partition_by="label",
                alpha=alpha,
                min_partition_size=min_size,
                self_balancing=balanced,
                seed=seeds.derive("partition"),
            )

        check_clients(split, num_clients, min_size)
        try:
            return drive(make, split, num_clients, seeds)
        except DataError as error:
            raise DataError(
                f"no Dirichlet draw with alpha={alpha} gave each of {num_clients} clients at least {min_size} "
                f"of {len(split)} samples; raise alpha, or lower min_size or the number of clients"
            ) from error

    return deal

"""Feature skew and label skew at once: each domain is divided between its clients by a Dirichlet draw."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition, by_domain
from fedadapt.data.partitions.dirichlet import dirichlet
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("partition", "domains_dirichlet")
def domains_dirichlet(
    *,
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5,
    min_size: Annotated[int, Field(ge=1)] = 1,
) -> Partition:
    """Feature and label skew: equally many clients for each domain, which share its classes as 'dirichlet' does.

    With E domains and K clients, K a multiple of E, the clients ``e K/E`` to ``(e + 1) K/E - 1`` hold domain e. With
    one client a domain it is partition 'domains'.

    Args:
        alpha: concentration of the classes within a domain, as for partition 'dirichlet'.
        min_size: samples that every client has at least.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        clients: list[Int64[Tensor, " _"]] = []
        domains, each = by_domain(split, num_clients, "domains_dirichlet", min_size)
        within = dirichlet(alpha=alpha, min_size=min_size)
        for number, members in enumerate(domains):
            # A seed of its own: the same draw in every domain would give one domain's clients twins in the others.
            own = Seeds(seeds.derive("partition of a domain", client=number))
            clients += [members[places] for places in within(split.take(members), each, own)]
        return Holdings.dealt(clients)

    return deal

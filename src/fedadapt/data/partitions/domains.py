"""Natural clients: one for each place that the images come from."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.base import Partition, check_clients
from fedadapt.errors import DataError
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("partition", "domains")
def domains() -> Partition:
    """One client a domain, or equally many for each, which then share its samples at random.

    With E domains and K clients, K a multiple of E, the clients ``e K/E`` to ``(e + 1) K/E - 1`` hold domain e.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> list[Int64[Tensor, " _"]]:
        check_clients(split, num_clients)
        if split.domains is None:
            raise DataError(
                "partition 'domains' needs to know where each image comes from, but the data set has no domains; "
                "use a source with domains, or partition 'iid' or 'dirichlet'"
            )
        known, counts = split.domains.unique(return_counts=True)
        if num_clients % len(known):
            raise DataError(
                f"partition 'domains' cannot deal {len(known)} domains out to {num_clients} clients; "
                f"the number of clients must be {len(known)} or a multiple of it"
            )
        each = num_clients // len(known)
        if int(counts.min()) < each:
            raise DataError(
                f"partition 'domains' cannot deal a domain of {int(counts.min())} samples out to {each} clients; "
                f"use at most {int(counts.min()) * len(known)} clients"
            )
        generator = seeds.torch("partition")
        clients = []
        for domain in known:
            members = (split.domains == domain).nonzero().squeeze(1)
            shuffled = members[torch.randperm(len(members), generator=generator)]
            clients += [part.sort().values for part in shuffled.tensor_split(each)]
        return clients

    return deal

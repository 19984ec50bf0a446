"""Feature skew: one client for each place that the images come from, or several."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition, by_domain
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("partition", "domains")
def domains() -> Partition:
    """One client a domain, or equally many for each, which then share its samples at random.

    With E domains and K clients, K a multiple of E, the clients ``e K/E`` to ``(e + 1) K/E - 1`` hold domain e.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        generator = seeds.torch("partition")
        clients: list[Int64[Tensor, " _"]] = []
        found, each = by_domain(split, num_clients, "domains")
        for members in found:
            shuffled = members[torch.randperm(len(members), generator=generator)]
            clients += [part.sort().values for part in shuffled.tensor_split(each)]
        return Holdings.dealt(clients)

    return deal

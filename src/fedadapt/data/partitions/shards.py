"""Label skew: the set is sorted by class, cut into shards, and each client gets some."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition, check_clients
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("partition", "shards")
def shards(*, shards: Annotated[int, Field(ge=1)] = 2) -> Partition:
    """Label skew: sorted by class and cut into ``K * shards`` equal shards, of which each client gets `shards` at random.

    A shard that lies across the border of two classes holds both, so that a client may hold a class or two more
    than it has shards; sizes differ by `shards` samples at most.

    Args:
        shards: of each client.

    Source:
        H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, *Communication-Efficient Learning of Deep
        Networks from Decentralized Data*, AISTATS 2017, section 3.

    Differs:
        From ``ShardPartitioner`` of flwr-datasets, which leaves out what does not fill a whole shard: here shards
        differ by one sample, and every sample is somebody's.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        check_clients(split, num_clients)
        check_clients(split, num_clients, shards)
        generator = seeds.torch("partition")
        # Shuffled before it is sorted, so that which samples of a class share a shard is left to chance.
        order = torch.randperm(len(split), generator=generator)
        order = order[split.labels[order].argsort(stable=True)]
        pieces = order.tensor_split(num_clients * shards)
        drawn = torch.randperm(len(pieces), generator=generator).view(num_clients, shards)
        return Holdings.dealt(
            [torch.cat([pieces[piece] for piece in own]).sort().values for own in drawn.tolist()]
        )

    return deal

"""Natural clients: one for each writer, patient or device."""

from __future__ import annotations

import torch

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition, check_clients
from fedadapt.errors import DataError
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("partition", "natural_id")
def natural_id() -> Partition:
    """One client an id (writer, patient, device); with fewer clients than ids, each holds as many whole ids at random.

    With as many clients as ids client k is the k-th id in ascending order. Nobody's samples are ever divided.

    Differs:
        From ``NaturalIdPartitioner`` of flwr-datasets, which gives the same clients, by sorting once instead of
        searching the whole set for each client: sets with natural clients have thousands of them.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        check_clients(split, num_clients)
        if split.ids is None:
            raise DataError(
                "partition 'natural_id' needs to know whose each image is, but the data set has no ids; use a source "
                "with ids (npz: array id_train; folder: ids=true; huggingface: id=COLUMN), or another partition"
            )
        order = split.ids.argsort(stable=True)
        _, sizes = torch.unique_consecutive(split.ids[order], return_counts=True)
        if num_clients > len(sizes):
            raise DataError(
                f"partition 'natural_id' found {len(sizes)} ids for {num_clients} clients; "
                f"set data.num_clients to {len(sizes)}, or to less to have clients with several ids"
            )
        owned = order.split(sizes.tolist())
        if num_clients == len(sizes):
            return Holdings.dealt(owned)
        shuffled = torch.randperm(len(owned), generator=seeds.torch("partition"))
        groups = shuffled.tensor_split(num_clients)
        return Holdings.dealt(
            [torch.cat([owned[i] for i in group.tolist()]).sort().values for group in groups]
        )

    return deal

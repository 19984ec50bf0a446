"""Clients are people, and nobody is divided."""

from __future__ import annotations

import datasets
import pytest
import torch
from flwr_datasets.partitioner import NaturalIdPartitioner

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.natural_id import natural_id
from fedadapt.errors import DataError
from fedadapt.seeds import Seeds


def _split(ids: list[int] | None, count: int = 7) -> Split:
    column = None if ids is None else torch.tensor(ids)
    return Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count).long(), ids=column)


def test_one_client_an_id():
    """With as many clients as ids, each holds one, in order; unused numbers make no client."""
    clients = natural_id()(_split([0, 4, 0, 4, 0, 2, 2]), 3, Seeds(0))
    assert [own.tolist() for own in clients] == [[0, 2, 4], [5, 6], [1, 3]]


def test_it_equals_the_partitioner_of_flwr_datasets():
    """Flower's own finds the same clients, in the order in which their ids first come."""
    ids = torch.randint(6, (50,), generator=torch.Generator().manual_seed(0))
    theirs = NaturalIdPartitioner(partition_by="id")
    theirs.dataset = datasets.Dataset.from_dict({"id": ids.numpy(), "index": range(50)})
    found = sorted(theirs.load_partition(k)["index"][:] for k in range(theirs.num_partitions))
    ours = natural_id()(_split(ids.tolist(), 50), theirs.num_partitions, Seeds(0))
    assert sorted(own.tolist() for own in ours) == found


def test_fewer_clients_hold_whole_ids():
    """Five ids for two clients are three and two ids, each whole."""
    ids = torch.arange(50) % 5
    clients = natural_id()(_split(ids.tolist(), 50), 2, Seeds(0))
    held = [set(ids[own].tolist()) for own in clients]
    assert sorted(map(len, held)) == [2, 3]
    assert not held[0] & held[1]


def test_more_clients_than_ids_are_refused():
    """The message says how many there are."""
    with pytest.raises(DataError, match=r"found 3 ids for 4 clients; set data.num_clients to 3, or to less"):
        natural_id()(_split([0, 4, 0, 4, 0, 2, 2]), 4, Seeds(0))


def test_without_ids_it_is_an_error():
    """A data set without ids names the sources that have them."""
    with pytest.raises(
        DataError, match=r"but the data set has no ids; use a source with ids \(npz: array id_train"
    ):
        natural_id()(_split(None), 2, Seeds(0))

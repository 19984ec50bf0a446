"""Clients with a few classes each."""

from __future__ import annotations

import pytest
import torch

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.pathological import pathological
from fedadapt.data.partitions.shards import shards
from fedadapt.data.skew import label_counts
from fedadapt.errors import DataError
from fedadapt.seeds import Seeds


def _split(labels: torch.Tensor) -> Split:
    return Split(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)


def _counts(partition, labels: torch.Tensor, num_clients: int) -> torch.Tensor:
    clients = partition(_split(labels), num_clients, Seeds(0))
    return label_counts(labels, clients, int(labels.max()) + 1)


def test_pathological_clients_hold_exactly_so_many_classes():
    """Ten clients of ten classes hold three each, client k class k among them."""
    counts = _counts(pathological(classes=3), torch.arange(300) % 10, 10)
    assert (counts > 0).sum(1).tolist() == [3] * 10
    assert (counts.diagonal() > 0).all()


def test_one_class_a_client_by_hand():
    """Six clients of three classes of 10: clients k and k + 3 halve class k, 5 each."""
    counts = _counts(pathological(classes=1), torch.arange(30) // 10, 6)
    assert counts.tolist() == [[5, 0, 0], [0, 5, 0], [0, 0, 5]] * 2


@pytest.mark.parametrize(("classes", "clients"), [(2, 2), (4, 3)])
def test_pathological_refuses_what_leaves_classes_out(classes, clients):
    """Two clients cannot begin with three classes between them, and nobody can hold four of three."""
    with pytest.raises(
        DataError,
        match=f"cannot give each of {clients} clients {classes} of 3 classes and leave none out; "
        "use at most 3 classes and at least 3 clients, or partition 'shards'$",
    ):
        pathological(classes=classes)(_split(torch.arange(30) % 3), clients, Seeds(0))


def test_shards_by_hand():
    """40 samples of four classes and two clients with two shards: 4 shards of 10, each a whole class."""
    counts = _counts(shards(shards=2), torch.arange(40) % 4, 2)
    assert sorted(counts.flatten().tolist()) == [0] * 4 + [10] * 4
    assert counts.sum(1).tolist() == [20, 20]


def test_shards_keep_every_sample():
    """11 samples in 4 shards are 3, 3, 3 and 2, so that two clients have 6 and 5 and nothing is left over."""
    assert sorted(_counts(shards(shards=2), torch.zeros(11).long(), 2).sum(1).tolist()) == [5, 6]


def test_more_shards_than_samples_are_refused():
    """Five clients cannot have three shards each of 14 samples."""
    with pytest.raises(DataError, match=r"5 clients with at least 3 each; 1 to 4 clients are possible$"):
        shards(shards=3)(_split(torch.zeros(14).long()), 5, Seeds(0))

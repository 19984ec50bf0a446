"""Equal shares."""

from __future__ import annotations

import torch

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.iid import iid
from fedadapt.data.skew import jensen_shannon, label_counts
from fedadapt.seeds import Seeds


def test_sizes_by_hand():
    """11 samples for 3 clients are 4, 4 and 3."""
    split = Split(torch.zeros(11, 1, 1, 1, dtype=torch.uint8), torch.zeros(11).long())
    assert [len(indices) for indices in iid()(split, 3, Seeds(0))] == [4, 4, 3]


def test_a_set_sorted_by_class_is_mixed():
    """Clients of a sorted set are close to the pool."""
    labels = torch.arange(1000) // 100
    clients = iid()(Split(torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), labels), 5, Seeds(0))
    assert jensen_shannon(label_counts(labels, clients, 10)).max() < 0.02

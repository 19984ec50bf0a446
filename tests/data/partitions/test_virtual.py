"""Clients that draw their own samples."""

from __future__ import annotations

import math

import pytest
import torch

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.virtual import virtual
from fedadapt.data.skew import effective_classes, label_counts
from fedadapt.errors import DataError
from fedadapt.seeds import Seeds

LABELS = torch.arange(2000) % 10
SPLIT = Split(torch.zeros(2000, 1, 1, 1, dtype=torch.uint8), LABELS)


def test_sizes_by_hand():
    """At sigma 1 a client whose number between 0 and 1 gives z = inverse normal has 40 e^(z - 1/2) samples."""
    held = virtual(size=40, sigma=1.0)(SPLIT, 10**6, Seeds(3))
    for client in (0, 999_999):
        z = Seeds(3).normal("client size", client=client)
        assert held.size(client) == round(40 * math.exp(z - 0.5))
    assert held.largest == round(40 * math.exp(2.5))


def test_the_mean_size_is_what_was_asked_for():
    """Over 4000 clients of spread 0.5 it is 40 to within four standard errors, 40 sqrt(e^(1/4) - 1) / sqrt(4000)."""
    held = virtual(size=40, sigma=0.5)(SPLIT, 10**6, Seeds(0))
    mean = sum(held.size(client) for client in range(4000)) / 4000
    assert mean == pytest.approx(40, abs=4 * 40 * math.sqrt(math.exp(0.25) - 1) / math.sqrt(4000))


def test_without_spread_everyone_has_the_same():
    """Sigma 0 gives the size itself."""
    held = virtual(size=7)(SPLIT, 5, Seeds(0))
    assert [len(own) for own in held] == [7] * 5


def test_a_smaller_alpha_is_more_skewed():
    """A tenth leaves few classes, a thousand as many as no alpha at all."""
    mean = [
        float(effective_classes(label_counts(LABELS, virtual(alpha=alpha)(SPLIT, 30, Seeds(0)), 10)).mean())
        for alpha in (0.1, 1000.0, None)
    ]
    assert mean[0] < 3
    assert mean[1] == pytest.approx(mean[2], abs=0.5)


def test_a_class_that_is_used_up_gives_way():
    """A client of 1500 samples at alpha 0.001 has all 200 of its class, and the rest from the others."""
    counts = label_counts(LABELS, virtual(size=1500, alpha=0.001)(SPLIT, 1, Seeds(0)), 10)
    assert counts.sum() == 1500
    assert counts.max() == 200


@pytest.mark.parametrize(("clients", "size"), [(0, 5), (3, 2001)])
def test_what_cannot_be_drawn_is_refused(clients, size):
    """Nobody, and more samples than there are."""
    with pytest.raises(
        DataError, match=f"cannot give each of {clients} clients {size} of 2000 samples; at least"
    ):
        virtual(size=size)(SPLIT, clients, Seeds(0))

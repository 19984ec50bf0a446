"""Clients of very different sizes."""

from __future__ import annotations

import math

import pytest
import torch

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.log_normal import log_normal
from fedadapt.data.partitions.power_law import power_law
from fedadapt.data.skew import jensen_shannon, label_counts, size_gini
from fedadapt.errors import DataError
from fedadapt.seeds import Seeds


def _split(count: int) -> Split:
    return Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count) % 4)


def test_zipf_by_hand():
    """With exponent 1 three clients share 112 - 3 samples by 6 : 3 : 2 of 11: 59.45, 29.73, 19.82, so 59, 30 and 20."""
    sizes = [len(own) for own in power_law(exponent=1.0)(_split(112), 3, Seeds(0))]
    assert sizes == [60, 31, 21]


def test_log_normal_sizes_are_the_draws_of_the_derived_seed():
    """Shares are exp(z) of four standard normal numbers, over their sum, after one sample each."""
    z = Seeds(5).numpy("partition").standard_normal(4)
    total = sum(math.exp(value) for value in z)
    sizes = [len(own) for own in log_normal(sigma=1.0)(_split(10_004), 4, Seeds(5))]
    assert sizes == pytest.approx([1 + 10_000 * math.exp(value) / total for value in z], abs=1)


def test_the_gini_of_log_normal_sizes_is_the_known_one():
    """With many clients it comes near erf(sigma / 2), 0.5205 at sigma 1; labels stay as mixed as chance has it."""
    split = _split(100_000)
    counts = label_counts(split.labels, log_normal(sigma=1.0)(split, 400, Seeds(1)), 4)
    assert size_gini(counts) == pytest.approx(math.erf(0.5), abs=0.06)
    assert float(jensen_shannon(counts).mean()) < 0.05


@pytest.mark.parametrize("partition", [log_normal(sigma=0.0), power_law(exponent=0.0)])
def test_without_skew_sizes_are_equal(partition):
    """At the neutral value clients differ by one sample at most."""
    assert sorted(len(own) for own in partition(_split(11), 3, Seeds(0))) == [3, 4, 4]


@pytest.mark.parametrize(
    "partition", [log_normal(sigma=3.0, min_size=5), power_law(exponent=3.0, min_size=5)]
)
def test_the_smallest_client_has_min_size(partition):
    """However strong the skew, everyone has five; and 21 clients cannot have five of 100."""
    assert min(len(own) for own in partition(_split(100), 10, Seeds(0))) >= 5
    with pytest.raises(DataError, match=r"21 clients with at least 5 each; 1 to 20 clients are possible$"):
        partition(_split(100), 21, Seeds(0))

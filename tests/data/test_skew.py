"""Measures of skew, each against a number derived by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon

from fedadapt.data.skew import effective_classes, jensen_shannon, label_counts, size_gini

_counts = hnp.arrays(
    "int64", st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(0, 50)
).map(torch.from_numpy)


def test_label_counts():
    """Counts are by client and class, with zeros for classes that a client lacks."""
    labels = torch.tensor([0, 1, 1, 2, 0])
    counts = label_counts(labels, [torch.tensor([0, 1, 2]), torch.tensor([3, 4])], 4)
    assert counts.tolist() == [[1, 2, 0, 0], [1, 0, 1, 0]]


def test_effective_classes_by_hand():
    """One class counts 1, two equal ones 2, halves and two quarters exp(1.5 ln 2), no samples 0."""
    counts = torch.tensor([[5, 0, 0], [3, 3, 0], [2, 1, 1], [0, 0, 0]])
    assert effective_classes(counts).tolist() == pytest.approx([1.0, 2.0, 2**1.5, 0.0])


def test_jensen_shannon_by_hand():
    """With two clients of one class each, m = (3/4, 1/4): H(m) - H(q)/2 = 0.811278 - 0.5 bits for both."""
    entropy = 2 - 0.75 * math.log2(3)
    distances = jensen_shannon(torch.tensor([[7, 0], [0, 7]])).tolist()
    assert distances == pytest.approx([entropy - 0.5] * 2)
    assert distances == pytest.approx([0.311278] * 2, abs=1e-6)


def test_some_clients_are_compared_with_all():
    """Two that are alike are as far from everyone as they are with the others beside them."""
    everyone = torch.tensor([[7, 0], [7, 0], [0, 7], [0, 7]])
    assert jensen_shannon(everyone[:2]).tolist() == [0, 0]
    assert jensen_shannon(everyone[:2], everyone).tolist() == jensen_shannon(everyone).tolist()[:2]


def test_jensen_shannon_of_equal_clients_is_zero():
    """Clients of the same distribution are no distance from the pool, whatever their sizes; nor is an empty one."""
    assert jensen_shannon(torch.tensor([[1, 2], [10, 20], [0, 0]])).tolist() == pytest.approx(
        [0.0] * 3, abs=1e-12
    )


def test_size_gini_by_hand():
    """Sizes 1 and 3: differences sum to 4, over 2 * 2 * 4; one of four that holds all gives 3/4."""
    assert size_gini(torch.tensor([[1, 0], [1, 2]])) == pytest.approx(0.25)
    assert size_gini(torch.tensor([[8], [0], [0], [0]])) == pytest.approx(0.75)
    assert size_gini(torch.tensor([[4], [4]])) == 0.0
    assert size_gini(torch.tensor([[0], [0]])) == 0.0


@given(_counts)
def test_measures_stay_in_range(counts):
    """Effective classes are from 0 to D, distances from 0 to 1, the Gini coefficient from 0 to (K - 1) / K."""
    clients, classes = counts.shape
    assert ((effective_classes(counts) >= 0) & (effective_classes(counts) <= classes + 1e-9)).all()
    assert ((jensen_shannon(counts) >= 0) & (jensen_shannon(counts) <= 1)).all()
    assert -1e-12 <= size_gini(counts) <= (clients - 1) / clients + 1e-12


@given(_counts.filter(lambda counts: bool((counts.sum(1) > 0).all())))
def test_jensen_shannon_equals_scipy(counts):
    """SciPy, whose distance is the root of the divergence, finds the same."""
    expected = [jensenshannon(row, counts.sum(0), base=2) ** 2 for row in counts.double()]
    assert jensen_shannon(counts).tolist() == pytest.approx(expected, abs=1e-9)

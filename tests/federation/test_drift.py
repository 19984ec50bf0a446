"""The drift of clients by hand."""

from __future__ import annotations

import pytest
import torch

from fedadapt.algorithms import Update
from fedadapt.federation.drift import measure_drift


def updates(*deltas, counts=None):
    """Updates of clients with these deltas of one tensor."""
    counts = counts or [1] * len(deltas)
    return [
        Update(k, n, 1, {"delta": {"w": torch.tensor(d), "bn.running_var": torch.tensor([100.0 * k])}})
        for k, (d, n) in enumerate(zip(deltas, counts, strict=True))
    ]


def test_lengths_are_of_clients_and_angles_to_the_weighted_mean():
    """Of (4, 0) with one sample and (0, 4) with three the mean is (1, 3): the cosines are 1 and 3 over the root of 10."""
    found = measure_drift(updates([4.0, 0.0], [0.0, 4.0], counts=[1, 3]), {"bn.running_var"})
    assert found == pytest.approx({"delta_norm": 4.0, "delta_cosine": 2 / 10**0.5})


def test_running_statistics_count_unless_they_are_left_out():
    """What moves with the batches would drown the rest."""
    found = measure_drift(updates([4.0, 0.0], [0.0, 4.0]))
    assert found["delta_norm"] == pytest.approx((4.0 + (16 + 1e4) ** 0.5) / 2)


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([[1.0], [2.0], [3.0]], {"delta_norm": 2.0, "delta_cosine": 1.0}),
        ([[1.0], [-1.0]], {"delta_norm": 1.0}),
        ([[0.0], [2.0]], {"delta_norm": 1.0, "delta_cosine": 1.0}),
        ([[0.0]], {"delta_norm": 0.0}),
        ([], {}),
    ],
)
def test_directions_that_are_none_are_left_out(deltas, expected):
    """A client that stands still has no direction, and clients that cancel each other out have no common one."""
    assert measure_drift(updates(*deltas), {"bn.running_var"}) == pytest.approx(expected)

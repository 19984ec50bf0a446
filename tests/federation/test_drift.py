"""The drift of clients by hand."""

from __future__ import annotations

import pytest
import torch

from fedadapt.algorithms import Update
from fedadapt.federation import drift
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


@pytest.mark.parametrize("block", [1, 7, 2**18])
@pytest.mark.parametrize("moving", [(), ("b",), ("a", "d"), ("b", "c"), ("a", "b", "c", "d")])
def test_it_is_the_definition_whatever_is_left_out_and_however_it_is_cut(monkeypatch, block, moving):
    """Tensors of several shapes, some of them left out, against the formula of one vector a client."""
    monkeypatch.setattr(drift, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (2, 3), "b": (5,), "c": (), "d": (3, 1, 2)}
    deltas = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(3)]
    found = measure_drift([Update(k, k + 1, 1, {"delta": own}) for k, own in enumerate(deltas)], moving)
    vectors = [
        torch.cat([torch.zeros(0), *(t.reshape(-1) for n, t in own.items() if n not in moving)]).double()
        for own in deltas
    ]
    mean = sum((k + 1) * vector for k, vector in enumerate(vectors)) / 6
    expected = {"delta_norm": sum(float(v.norm()) for v in vectors) / 3}
    if len(mean):
        cosines = [float(v @ mean / (v.norm() * mean.norm())) for v in vectors]
        expected["delta_cosine"] = sum(cosines) / 3
    assert found == pytest.approx(expected)

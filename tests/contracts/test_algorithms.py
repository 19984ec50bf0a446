"""What holds for every algorithm; a new one is a row of the table and a file in tests/reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import fedavg

from fedadapt.algorithms import Update
from fedadapt.params import is_finite
from fedadapt.registry import create, names


@dataclass(frozen=True)
class Case:
    """One algorithm with its slow literal version and a number that was derived by hand.

    Args:
        name: as registered.
        reference: has ``step(state, updates)``.
        by_hand: the model after one step from 1.0, of a client with 30 samples and delta 1.0 and one with 10
            samples and delta 0.5.
        options: of the algorithm.
    """

    name: str
    reference: ModuleType
    by_hand: float
    options: dict[str, Any] = field(default_factory=dict)


TABLE = [
    # (30 * 1.0 + 10 * 0.5) / 40 = 0.875 is added to 1.0.
    Case("fedavg", fedavg, 1.875)
]
CASES = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
SHAPES = {"a": (2, 3), "b": (4,), "c": ()}


def draw(generator):
    """Random values in the shapes of `SHAPES`."""
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def play(case, step, counts, rounds=2):
    """The states after some rounds with the same clients and fresh updates in each."""
    generator = torch.Generator().manual_seed(len(counts))
    algorithm = create("algorithm", case.name, case.options)
    states = [algorithm.init(draw(generator))]
    for _ in range(rounds):
        updates = [
            Update(client, count, 1 + client % 3, {name: draw(generator) for name in algorithm.uploads})
            for client, count in enumerate(counts)
        ]
        states.append((step or algorithm.step)(states[-1], updates))
    return states


def test_the_table_is_complete():
    """Every registered algorithm is under contract."""
    assert {case.name for case in TABLE} == set(names("algorithm"))


@CASES
@settings(max_examples=20)
@given(counts=st.lists(st.integers(1, 500), min_size=1, max_size=9))
def test_it_does_what_its_literal_version_does(case, counts):
    """All streams of the state agree with the slow version, round after round."""
    ours, theirs = play(case, None, counts), play(case, case.reference.step, counts)
    for state, expected in zip(ours, theirs, strict=True):
        assert state.keys() == expected.keys()
        for stream in state:
            for name, tensor in state[stream].items():
                torch.testing.assert_close(tensor, expected[stream][name], rtol=1e-5, atol=1e-6)


@CASES
def test_a_step_has_the_number_derived_by_hand(case):
    """Two clients with one value each."""
    algorithm = create("algorithm", case.name, case.options)
    state = algorithm.init({"w": torch.ones(1)})
    updates = [
        Update(client, count, 1, {name: {"w": torch.tensor([delta])} for name in algorithm.uploads})
        for client, count, delta in ((0, 30, 1.0), (1, 10, 0.5))
    ]
    assert algorithm.step(state, updates)["model"]["w"].item() == pytest.approx(case.by_hand, abs=1e-6)


@CASES
def test_it_is_deterministic_and_pure(case):
    """The same updates give the same bits, and neither state nor updates are changed."""
    algorithm = create("algorithm", case.name, case.options)
    generator = torch.Generator().manual_seed(0)
    state = algorithm.init(draw(generator))
    updates = [Update(k, 5 + k, 1, {name: draw(generator) for name in algorithm.uploads}) for k in range(4)]
    before = {s: {n: t.clone() for n, t in p.items()} for s, p in state.items()}
    sent = [u.streams[algorithm.uploads[0]]["a"].clone() for u in updates]
    first, second = algorithm.step(state, updates), algorithm.step(state, updates)
    for stream, params in first.items():
        assert is_finite(params)
        assert all(torch.equal(tensor, second[stream][name]) for name, tensor in params.items())
    for stream, params in before.items():
        assert all(torch.equal(tensor, state[stream][name]) for name, tensor in params.items())
    assert all(
        torch.equal(a, u.streams[algorithm.uploads[0]]["a"]) for a, u in zip(sent, updates, strict=True)
    )


@CASES
def test_clients_that_changed_nothing_change_nothing(case):
    """With zero updates the first step leaves the model where it is, names and order included."""
    algorithm = create("algorithm", case.name, case.options)
    model = draw(torch.Generator().manual_seed(0))
    zeros = {name: {n: torch.zeros(s) for n, s in SHAPES.items()} for name in algorithm.uploads}
    after = algorithm.step(algorithm.init(model), [Update(0, 3, 1, zeros), Update(7, 1, 2, zeros)])["model"]
    assert list(after) == list(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in model.items())


@CASES
def test_what_it_downloads_is_in_its_state(case):
    """The first download is the model, and every download is a stream of the state from the start on."""
    algorithm = create("algorithm", case.name, case.options)
    state = algorithm.init(draw(torch.Generator().manual_seed(0)))
    assert algorithm.downloads[0] == "model"
    assert set(algorithm.downloads) <= set(state)
    assert algorithm.uploads

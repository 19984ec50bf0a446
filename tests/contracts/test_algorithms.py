"""What holds for every algorithm; a new one is a row of the table and a file in tests/reference."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from contracts.cases import federate, tiny_model, tiny_party
from contracts.techniques import TABLE
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import literal

from fedadapt.algorithms import Update
from fedadapt.errors import ConfigError
from fedadapt.params import from_bytes, is_finite, to_bytes
from fedadapt.registry import create, names

CASES = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
SHAPES = {"a": (2, 3), "b": (4,), "c": ()}
SIZES = (5, 9, 3, 8, 6, 7, 4)
"""Samples of the clients of the short federations: ragged, in batches of 4 from one step to three."""
EQUAL = (4,) * 7
COHORTS = ([0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 4, 5, 6], [0, 1, 2, 4, 5, 6])


def draw(generator):
    """Random values in the shapes of `SHAPES`."""
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def draw_update(algorithm, client, count, generator):
    """An update with all the streams and scalars that the algorithm sends."""
    scalars = {name: float(torch.rand((), generator=generator)) + 0.5 for name in algorithm.local.scalars}
    streams = {name: draw(generator) for name in algorithm.uploads}
    return Update(client, count, 1 + client % 3, streams, scalars)


def play(case, step, counts, rounds=2):
    """The states after some rounds with the same clients and fresh updates in each."""
    generator = torch.Generator().manual_seed(len(counts))
    algorithm = case.make()
    states = [algorithm.init(draw(generator))]
    for _ in range(rounds):
        updates = [draw_update(algorithm, k, count, generator) for k, count in enumerate(counts)]
        states.append((step or algorithm.step)(states[-1], updates))
    return states


def close(ours, theirs, start, tolerance):
    """Whether two models agree, measured by how far training moved any value."""
    moved = max(float((theirs[name] - start[name]).abs().max()) for name in theirs)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    return apart <= tolerance * moved + 1e-6


def test_only_the_root_has_no_parent():
    """Every technique but federated averaging says where it is another one."""
    assert [case.name for case in TABLE if case.neutral is None] == ["fedavg"]


def test_the_table_is_complete():
    """Every registered algorithm is under contract."""
    assert {case.name for case in TABLE} == set(names("algorithm"))


@CASES
@settings(max_examples=8)
@given(counts=st.lists(st.integers(1, 500), min_size=1, max_size=9))
def test_the_server_does_what_its_literal_version_does(case, counts):
    """All streams of the state agree with the slow version, round after round, however few of those it needs answer."""
    # Fewer never get here: such a round changes nothing.
    counts *= -(-case.make().server.least // len(counts))

    def step(state, updates):
        return case.reference.step(state, updates, len(updates))

    ours, theirs = play(case, None, counts), play(case, step, counts)
    for state, expected in zip(ours, theirs, strict=True):
        assert state.keys() == expected.keys()
        for stream in state:
            for name, tensor in state[stream].items():
                torch.testing.assert_close(tensor, expected[stream][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "adapter"), [(c, a) for c in TABLE for a in c.adapters], ids=lambda v: getattr(v, "name", v)
)
def test_a_federation_is_that_of_its_literal_version(case, adapter):
    """With adapters, full fine-tuning, or norms and head: ragged clients, some absent, end where plain loops end."""
    cohorts = COHORTS if adapter == "parallel" else COHORTS[:2]
    train = {"epochs": 2 if adapter == "parallel" else 1} | case.train
    party = tiny_party(tiny_model(adapter), sizes=SIZES, algorithm=case.make(), momentum=0.0, **train)
    theirs, memory = literal.federate(case.reference, party, cohorts)
    ours = federate(party, cohorts)
    start = ours[0]["model"]
    for state, expected in zip(ours, theirs, strict=True):
        assert state.keys() == expected.keys()
        assert close(state["model"], expected["model"], start, 1e-3)
        for stream in state:
            for name, tensor in state[stream].items():
                torch.testing.assert_close(tensor, expected[stream][name], rtol=1e-2, atol=2e-4)
    for client, kept in memory.items():
        for stream, params in kept.items():
            for name, tensor in params.items():
                torch.testing.assert_close(party.memory[client][stream][name], tensor, rtol=1e-2, atol=2e-4)


OTHERS = {
    "head": {},
    "bias": {},
    "low_rank": {"rank": 2},
    "seeded": {"rank": 2},
    "lora": {"rank": 2},
    "grouped": {"groups": 2},
    "diagonal": {},
    "series": {},
    "bottleneck": {"rank": 2, "sites": {"layers": ("conv",)}},
}
"""Trainable sets that the literal versions are not compared on; all adapters differ in names and shapes alone."""


@CASES
def test_it_goes_with_every_trainable_set(case):
    """A round moves the model and leaves it finite, or the run is refused in one line that says why."""
    refused = []
    for adapter, options in OTHERS.items():
        model = tiny_model(adapter, **options)
        try:
            party = tiny_party(model, sizes=(4,) * 7, algorithm=case.make(), **case.train)
        except ConfigError as error:
            refused.append(adapter)
            assert "\n" not in str(error)
            continue
        before, after = federate(party, [range(7)])
        assert is_finite(after["model"])
        assert any(not torch.equal(tensor, before["model"][name]) for name, tensor in after["model"].items())
    # Who keeps the head shares nothing where there is nothing else; without adapters none can be personal.
    assert refused == {"fedper": ["head"], "fedrep": ["head"], "perada": ["head", "bias"]}.get(case.name, [])


@pytest.mark.parametrize("case", [case for case in TABLE if case.neutral], ids=lambda case: case.name)
def test_at_its_neutral_value_it_is_its_parent(case):
    """Two rounds of a ragged federation end where the parent's do."""
    neutral, sizes = case.neutral, EQUAL if case.neutral.equal else SIZES
    runs = []
    for algorithm in (create("algorithm", case.name, neutral.options), neutral.make_parent()):
        party = tiny_party(tiny_model("parallel"), sizes=sizes, algorithm=algorithm, **case.train)
        runs.append(federate(party, COHORTS[: neutral.rounds]))
    ours, theirs = runs
    for state, expected in zip(ours, theirs, strict=True):
        assert close(state["model"], expected["model"], ours[0]["model"], neutral.tolerance)
    assert not close(ours[-1]["model"], ours[0]["model"], ours[0]["model"], 0.0)


@CASES
def test_chunks_change_nothing(case):
    """Clients trained one by one, three at a time and all at once end alike, and keep the same."""
    results = []
    for chunk in (1, 3, 16):
        party = tiny_party(tiny_model("parallel"), sizes=SIZES, algorithm=case.make(), **case.train)
        results.append((federate(party, COHORTS[:2], chunk=chunk), party.memory))
    (first, kept), *others = results
    for states, memory in others:
        assert close(states[-1]["model"], first[-1]["model"], first[0]["model"], 1e-3)
        assert memory.keys() == kept.keys()
        for client, streams in memory.items():
            for stream, params in streams.items():
                for name, tensor in params.items():
                    torch.testing.assert_close(tensor, kept[client][stream][name], rtol=1e-2, atol=1e-4)


@CASES
def test_it_goes_on_bit_for_bit(case):
    """A round, everything through bytes and back, a fresh party and two more rounds: the same bits as three at once."""
    cohorts = COHORTS

    def party(memory):
        model = tiny_model("parallel", case.norms)
        return tiny_party(model, sizes=SIZES, algorithm=case.make(), memory=memory, **case.train)

    whole = party({})
    expected = federate(whole, cohorts)[-1]
    begun = party({})
    half = federate(begun, cohorts[:1])[-1]
    stored = {client: from_bytes(to_bytes(kept)) for client, kept in begun.memory.items()}
    again = party(stored)
    after = federate(again, cohorts[1:], first=2, state=from_bytes(to_bytes(half)))[-1]
    assert to_bytes(after) == to_bytes(expected)
    assert {c: to_bytes(kept) for c, kept in again.memory.items()} == {
        c: to_bytes(kept) for c, kept in whole.memory.items()
    }


@CASES
def test_a_step_has_the_number_derived_by_hand(case):
    """Clients with one value each; the derivation is in the table."""
    algorithm = case.make()
    state = algorithm.init({"w": torch.ones(1)})
    updates = case.hand_updates(algorithm.local.scalars)
    assert algorithm.step(state, updates)["model"]["w"].item() == pytest.approx(case.by_hand, abs=1e-5)


@CASES
def test_it_is_deterministic_and_pure(case):
    """The same updates give the same bits, and neither state nor updates are changed."""
    algorithm = case.make()
    generator = torch.Generator().manual_seed(0)
    state = algorithm.init(draw(generator))
    updates = [draw_update(algorithm, k, 5 + k, generator) for k in range(8)]
    before = to_bytes(state)
    sent = [to_bytes(u.streams) for u in updates]
    first, second = algorithm.step(state, updates), algorithm.step(state, updates)
    assert all(is_finite(params) for params in first.values())
    assert to_bytes(first) == to_bytes(second)
    assert to_bytes(state) == before
    assert [to_bytes(u.streams) for u in updates] == sent


@CASES
def test_clients_that_changed_nothing_change_nothing(case):
    """With zero updates the first step leaves the model where it is, names and order included."""
    algorithm = case.make()
    model = draw(torch.Generator().manual_seed(0))
    zeros = {name: {n: torch.zeros(s) for n, s in SHAPES.items()} for name in algorithm.uploads}
    scalars = dict.fromkeys(algorithm.local.scalars, 1.0)
    updates = [Update(client, 3 + client, 1, zeros, scalars) for client in range(8)]
    after = algorithm.step(algorithm.init(model), updates)["model"]
    assert list(after) == list(model)
    assert all(torch.allclose(after[name], tensor, atol=1e-7) for name, tensor in model.items())


@CASES
def test_averaged_statistics_are_never_optimised(case):
    """Running statistics that travel move by a mean of the clients' changes, or the technique says why it cannot."""
    model = tiny_model("parallel", "averaged")
    try:
        party = tiny_party(model, sizes=EQUAL, algorithm=case.make(), **case.train)
    except ValueError as error:
        assert "running statistics" in str(error)
        return
    states = federate(party, COHORTS[:2])
    for name in model.moving:
        assert not torch.equal(states[-1]["model"][name], states[0]["model"][name])
        if name.endswith("running_var"):
            assert (states[-1]["model"][name] > 0).all()


@CASES
def test_what_it_downloads_is_in_its_state(case):
    """The first download is the model, and every download is a stream of the state from the start on."""
    algorithm = case.make()
    state = algorithm.init(draw(torch.Generator().manual_seed(0)))
    assert algorithm.downloads[0] == "model"
    assert set(algorithm.downloads) <= set(state)
    assert algorithm.uploads[0] == "delta"


def test_the_literal_federation_learns():
    """The slow version is no empty yardstick: its loss falls."""
    party = tiny_party(tiny_model("parallel"), sizes=(8,), momentum=0.0, epochs=8, lr=0.2)
    states, _ = literal.federate(SimpleNamespace(step=TABLE[0].reference.step), party, [[0]] * 3)
    client = literal.Client(party, 0, 1, states[0])
    before, after = (
        float(client.loss(state["model"], client.everything())) for state in (states[0], states[-1])
    )
    assert after < 0.9 * before

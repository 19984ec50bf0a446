"""Chunks side by side give what they give one after the other."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import torch
from contracts.cases import tiny_model, tiny_party, tiny_wire
from tiny import StopAfter, Stopped, outcome, tiny

from fedadapt.engines.local import LocalEngine
from fedadapt.experiment import resume, run
from fedadapt.federation import serve as serving
from fedadapt.federation.messages import Request
from fedadapt.federation.round import play
from fedadapt.params import to_bytes
from fedadapt.registry import create
from fedadapt.runs.records import Outcome
from fedadapt.runs.store import RunStore


@contextmanager
def threads(count):
    """Torch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CASES = {
    "adapters": {},
    "full": {"adapter": "full"},
    "own norms": {"norms": "local"},
    "own models": {"algorithm": "ditto"},
    "control variates": {"algorithm": "scaffold"},
    "lossy": {"codec": "int4", "wire": {"error_feedback": True, "delta": True}},
}


def exchange(
    adapter="parallel", norms="frozen", algorithm="fedavg", codec="float32", wire=None, rounds=2, told=None
):
    """The replies of two rounds and what clients keep, in chunks of three."""
    technique = create("algorithm", algorithm)
    model = tiny_model(adapter, norms)
    party = tiny_party(
        model, algorithm=technique, wire=tiny_wire(model, codec, technique.local.kept, **(wire or {}))
    )
    state = technique.init({name: model.start[name].clone() for name in party.wire.plan.layout()})
    engine, replies = LocalEngine(party, 3, (told if told is not None else []).append), []
    for round in range(1, rounds + 1):
        flow = play(technique, party.wire, state, round, list(range(16)))
        came = engine.exchange(next(flow))
        replies += came
        with pytest.raises(StopIteration) as stop:
            flow.send(came)
        state = stop.value.value.state
    return replies, {client: to_bytes(kept) for client, kept in party.memory.items()}, to_bytes(state)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_lanes_change_no_bit(case):
    """Whoever is done first: the same frames in the same order, the same memory, the same state."""
    told = []
    with threads(1):
        alone = exchange(**case)
    for count in (2, 3):
        with threads(count):
            assert exchange(**case, told=told) == alone
            assert torch.get_num_threads() == count
    assert told[-1] == 16
    assert told == sorted(told[: len(told) // 4]) * 4


@pytest.mark.parametrize("start", ["class_means", "lda"])
def test_a_head_from_class_means_is_asked_for_in_lanes(tmp_path, start):
    """Before the first round there is no model in what is sent, and so nothing to read."""
    config = tiny("engine.chunk=1", "rounds=1", f"head={{name='trained', start='{start}'}}")
    paths = []
    for count in (1, 2):
        with threads(count):
            paths.append(run(config, tmp_path / str(count)))
    with RunStore.read(paths[0]) as one, RunStore.read(paths[1]) as other:
        assert [r.metrics["accuracy"] for r in other.rounds()] == [
            r.metrics["accuracy"] for r in one.rounds()
        ]
        assert {r.outcome for r in other.clients(0)} == {Outcome.ACCEPTED}


@pytest.mark.parametrize("codec", ["float32", "int4"])
def test_damaged_requests_fail_by_message_in_lanes(codec):
    """Each client says so, as without lanes."""
    party = tiny_party(tiny_model(), wire=tiny_wire(tiny_model(), codec, delta=codec != "float32"))
    requests = [Request(1, client, b"no frame") for client in range(6)]
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(LocalEngine(party, 2).exchange(requests))
    assert found[0] == found[1]
    assert all(reply.failure for reply in found[1])


def test_lanes_are_side_by_side(monkeypatch):
    """Two chunks are at work at once, and one that ends first waits for its turn."""
    at_work, most = [], []

    def slow(requests, party, read=None):
        at_work.append(party)
        most.append(len(at_work))
        time.sleep(0.2)
        at_work.pop()
        return serving.serve(requests, party, read)

    monkeypatch.setattr("fedadapt.engines.lanes.serve", slow)
    with threads(2):
        replies, _, _ = exchange(rounds=1)
    assert max(most) == 2
    assert len(replies) == 16


def test_what_breaks_in_a_lane_ends_the_round(monkeypatch):
    """As it would without lanes; chunks that were not begun are not."""
    begun = []

    def broken(requests, party, read=None):
        begun.append(requests)
        time.sleep(0.2)
        raise ZeroDivisionError(len(requests))

    monkeypatch.setattr("fedadapt.engines.lanes.serve", broken)
    with threads(2), pytest.raises(ZeroDivisionError):
        exchange()
    assert len(begun) < 6


@pytest.mark.parametrize(
    "settings",
    [
        ("data.augment.pad=0", "adapter=head"),
        ("algorithm=ditto", "codec=int4", "codec.error_feedback=true"),
        ("adapter={name='parallel', sites={dropout=0.3}}", "norms=local"),
    ],
)
def test_a_run_on_two_threads_goes_on_bit_for_bit(tmp_path, settings):
    """With kept features, kept models, dropout; its memory comes from disk, which only one thread reads."""
    config = tiny("engine.chunk=1", "cohort=3", *settings)
    with threads(2):
        whole = outcome(run(config, tmp_path / "whole"))
        with pytest.raises(Stopped):
            run(config, tmp_path / "again", watcher=StopAfter(1))
        assert outcome(resume(tmp_path / "again" / "tiny")) == whole
    with threads(1):
        alone = run(config, tmp_path / "alone")
    with RunStore.read(alone) as one, RunStore.read(tmp_path / "whole" / "tiny") as other:
        for stream, params in one.state().items():
            for name, tensor in params.items():
                torch.testing.assert_close(other.state()[stream][name], tensor, rtol=1e-3, atol=1e-5)

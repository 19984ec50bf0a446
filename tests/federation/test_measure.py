"""Sites say how good a model is: every byte counts, and what cannot have been measured is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from contracts.cases import tiny_model, tiny_party

from fedadapt.federation.frame import Frame, Kind
from fedadapt.federation.measure import answer_measure, play_measure
from fedadapt.federation.messages import Reply
from fedadapt.federation.round import Played
from fedadapt.runs.records import ClientRecord, Direction, Outcome
from fedadapt.training.evaluate import evaluate
from fedadapt.training.metrics import NAMES


def held_out(party, count=5):
    """Some of a site's samples."""
    return party.split.take(torch.arange(count))


@pytest.fixture
def party():
    """A site."""
    return tiny_party(tiny_model())


def ask(party, clients=(0, 1), counted=(0,)):
    """A flow, and what it asks of clients after round 3, of which some counted."""
    shared = {name: party.model.start[name].clone() for name in party.wire.plan.layout()}
    records = tuple(ClientRecord(3, c, Outcome.ACCEPTED if c in counted else Outcome.FAILED) for c in clients)
    played = Played(party.algorithm.init(shared), records, ())
    flow = play_measure(party.algorithm, party.wire, played, 3, clients)
    return flow, next(flow)


def end(flow, replies):
    """What the flow comes to."""
    with pytest.raises(StopIteration) as stop:
        flow.send(replies)
    return stop.value.value


def test_sites_measure_the_new_model(party):
    """On their own samples, by every metric; who has none says so, and every byte is counted in the round."""
    flow, requests = ask(party)
    assert [(r.round, r.measure, r.accepted) for r in requests] == [(4, True, 3), (4, True, None)]
    replies = [answer_measure(r, party, held_out(party, 5 * (r.client == 0))) for r in requests]
    found = end(flow, replies)
    expected = evaluate(party.model, party.model.start, held_out(party), party.mean, party.std)
    assert found.scores == {0: pytest.approx(expected)}
    assert found.failures == {}
    assert {len(reply.frame) for reply in replies} == {124}
    assert {entry.round for entry in found.ledger} == {3}
    for way, frames in ((Direction.DOWNLOAD, requests), (Direction.UPLOAD, replies)):
        moved = sum(entry.num_bytes for entry in found.ledger if entry.direction is way)
        assert moved == sum(len(one.frame) for one in frames)


def test_a_damaged_request_is_a_failure(party):
    """The site says why, and the others are heard."""
    flow, requests = ask(party)
    damaged = replace(requests[0], frame=requests[0].frame[:-1])
    found = end(flow, [answer_measure(one, party, held_out(party)) for one in (damaged, requests[1])])
    assert list(found.failures) == [0]
    assert list(found.scores) == [1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("examples", 2.5),
        ("examples", -1.0),
        ("examples", math.inf),
        ("accuracy", 1.5),
        ("accuracy", -0.1),
        ("macro_f1", math.inf),
        ("loss", -1.0),
    ],
)
def test_what_no_site_can_have_measured_is_refused(party, name, value):
    """With its reason; the round is none the worse."""
    flow, (request, _) = ask(party)
    said = dict.fromkeys(("examples", *NAMES), 0.5) | {"examples": 4.0} | {name: value}
    frame = Frame(Kind.UPLOAD, 4, 0, party.wire.identity, tuple(said.values()), ())
    found = end(flow, [Reply(4, request.client, frame.pack(), measure=True)])
    assert "not a count and measures" in found.failures[0]
    assert found.scores == {}


def test_an_update_is_no_measure(party):
    """A frame of another shape is refused, and one that was asked for otherwise does not count."""
    flow, _ = ask(party)
    frame = Frame(Kind.UPLOAD, 4, 0, party.wire.identity, (1.0,), ()).pack()
    found = end(flow, [Reply(4, 0, frame, measure=True), Reply(4, 1, frame)])
    assert "expected 0 and 7" in found.failures[0]
    assert (found.scores, list(found.failures)) == ({}, [0])
    assert sum(e.num_bytes for e in found.ledger if e.direction is Direction.UPLOAD) == 2 * len(frame)


def test_a_loss_that_is_no_number_is_a_finding(party):
    """As in a simulation; of other measures it says that they are not defined."""
    flow, _ = ask(party)
    said = dict.fromkeys(("examples", *NAMES), 0.5) | {"examples": 4.0, "loss": math.nan, "auroc": math.nan}
    frame = Frame(Kind.UPLOAD, 4, 0, party.wire.identity, tuple(said.values()), ())
    found = end(flow, [Reply(4, 0, frame.pack(), measure=True)])
    assert found.failures == {}
    assert math.isnan(found.scores[0]["loss"])
    assert "auroc" not in found.scores[0]
    assert found.scores[0]["accuracy"] == 0.5


def test_whoever_is_not_there_costs_nothing(party):
    """Neither a byte up nor a word; and where nobody is asked nothing is packed."""
    flow, requests = ask(party)
    gone = [
        Reply(4, r.client, failure="no reply", outcome=Outcome.ABSENT, downloads=0, measure=True)
        for r in requests
    ]
    found = end(flow, gone)
    assert (found.scores, found.failures, found.ledger) == ({}, {}, ())
    played = Played(party.algorithm.init(dict(party.model.start)), (), ())
    with pytest.raises(StopIteration) as stop:
        next(play_measure(party.algorithm, party.wire, played, 3, []))
    assert stop.value.value.ledger == ()

"""A round folds whatever comes back, in any order, and records what became of everyone that was asked."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from contracts.cases import first_state, tiny_model, tiny_party, tiny_wire
from hypothesis import given, settings
from hypothesis import strategies as st
from storm import storm

from fedadapt.federation.frame import Kind
from fedadapt.federation.messages import EVERYONE, Reply
from fedadapt.federation.round import play
from fedadapt.federation.serve import UPLOAD_SCALARS, serve
from fedadapt.params import Group
from fedadapt.registry import create
from fedadapt.runs.records import FRAMING, Direction, Outcome

PARTY = tiny_party(tiny_model())
STATE = first_state(PARTY)
COHORT = [0, 2, 3, 5, 8]


def ask(cohort=COHORT, round=1, party=PARTY, state=STATE):
    """The round as a generator, and its requests."""
    flow = play(party.algorithm, party.wire, state, round, cohort)
    return flow, next(flow)


def finish(flow, replies):
    """What the round came to."""
    with pytest.raises(StopIteration) as stop:
        flow.send(replies)
    return stop.value.value


def upload(client, *, round=1, delta=0.0, scalars=(3.0, 1.0, 0.5), wire=PARTY.wire):
    """A reply whose update has one value everywhere."""
    values = {name: torch.full(shape, delta) for name, shape in PARTY.wire.plan.layout().items()}
    return Reply(round, client, wire.write(Kind.UPLOAD, round, client, {"delta": values}, scalars))


@pytest.fixture(scope="module")
def sound():
    """The replies of all clients of `COHORT` to round 1."""
    return serve(ask()[1], PARTY)


def same(one, other):
    """Whether two rounds came to the same, bit for bit."""
    return (one.clients, one.ledger) == (other.clients, other.ledger) and all(
        torch.equal(one.state["model"][name], tensor) for name, tensor in other.state["model"].items()
    )


def test_everyone_gets_the_same_download():
    """There is one request for each client, and one frame for all."""
    _, requests = ask()
    assert [request.client for request in requests] == COHORT
    assert len({id(request.frame) for request in requests}) == 1
    message = PARTY.wire.read(requests[0].frame, Kind.DOWNLOAD, 1, EVERYONE, ("model",), 0)
    assert all(torch.equal(message.streams["model"][name], STATE["model"][name]) for name in STATE["model"])


def test_the_ledger_has_every_byte(sound):
    """For each client the entries of each direction sum to the length of its frame, framing at most 256 bytes."""
    flow, requests = ask()
    played = finish(flow, sound)
    frames = {(r.client, Direction.DOWNLOAD): r.frame for r in requests}
    frames |= {(r.client, Direction.UPLOAD): r.frame for r in sound}
    for (client, direction), frame in frames.items():
        entries = [e for e in played.ledger if (e.client, e.direction) == (client, direction)]
        assert sum(entry.num_bytes for entry in entries) == len(frame)
        groups = {entry.group: entry.num_bytes for entry in entries}
        assert groups.pop(FRAMING) <= 256
        assert groups == {s.group.value: s.num_bytes for s in PARTY.wire.plan.summary() if s.num_bytes}
        assert set(groups) == {Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD}
    assert len(played.ledger) == 2 * len(COHORT) * 4


def test_a_download_counts_as_often_as_it_went_out(sound):
    """Twice for a site that was asked again, not at all for one that was never there."""
    flow, requests = ask()
    never = Reply(1, COHORT[1], failure="no reply", outcome=Outcome.ABSENT, downloads=0)
    played = finish(flow, [replace(sound[0], downloads=2), never, *sound[2:]])
    times = {sound[0].client: 2, COHORT[1]: 0}
    for request in requests:
        entries = [
            e for e in played.ledger if (e.client, e.direction) == (request.client, Direction.DOWNLOAD)
        ]
        assert sum(e.num_bytes for e in entries) == times.get(request.client, 1) * len(request.frame)


def test_a_whole_version_counts_as_what_it_was():
    """A client that was sent the step, and then the whole because it had lost what it held: both are in the ledger."""
    party = replace(PARTY, wire=tiny_wire(PARTY.model, "int4", delta=True), memory={})
    state = finish(*_answered(ask(party=party), party)).state
    flow, requests = ask(round=2, party=party, state=state)
    whole = requests[0].whole()
    assert len(whole) > 2 * len(requests[0].frame)
    del party.memory[EVERYONE]
    assert "starts from version" in serve(requests, party)[0].failure
    replies = serve([replace(request, frame=whole) for request in requests], party)
    assert not any(reply.failure for reply in replies)
    played = finish(flow, [replace(replies[0], downloads=3, wholes=1), *replies[1:]])
    moved = sum(
        e.num_bytes
        for e in played.ledger
        if (e.client, e.direction) == (replies[0].client, Direction.DOWNLOAD)
    )
    assert moved == 2 * len(requests[0].frame) + len(whole)


def _answered(asked, party):
    flow, requests = asked
    return flow, serve(requests, party)


def test_replies_in_any_order_give_the_same_round(sound):
    """State, records and ledger do not depend on who was fastest."""
    expected = finish(ask()[0], sound)
    assert any(not torch.equal(expected.state["model"][n], t) for n, t in STATE["model"].items())
    for replies in itertools.islice(itertools.permutations(sound), 0, 120, 17):
        assert same(finish(ask()[0], replies), expected)


NAN = float("nan")
BAD = {
    "missing": (None, Outcome.ABSENT, "no reply"),
    "failed": (Reply(1, 3, failure="no memory"), Outcome.FAILED, "no memory"),
    "empty": (Reply(1, 3), Outcome.REFUSED, "cut off"),
    "noise": (Reply(1, 3, b"\xff" * 500), Outcome.REFUSED, "not from fedadapt"),
    "nan": (upload(3, delta=NAN), Outcome.REFUSED, "infinite or NaN"),
    "infinite": (upload(3, delta=-math.inf), Outcome.REFUSED, "infinite or NaN"),
    "replayed": (Reply(1, 3, upload(3, round=9).frame), Outcome.REFUSED, "in round 9"),
    "of another round": (upload(3, round=2), Outcome.ABSENT, "no reply"),
    "of another client": (Reply(1, 3, upload(5).frame), Outcome.REFUSED, "client 5"),
    "the download": (Reply(1, 3, ask()[1][0].frame), Outcome.REFUSED, "download"),
    "no samples": (upload(3, scalars=(0.0, 1.0, 0.5)), Outcome.REFUSED, "scalars"),
    "negative": (upload(3, scalars=(-3.0, 1.0, 0.5)), Outcome.REFUSED, "scalars"),
    "half a sample": (upload(3, scalars=(1.5, 1.0, 0.5)), Outcome.REFUSED, "scalars"),
    "too many samples": (upload(3, scalars=(1e300, 1.0, 0.5)), Outcome.REFUSED, "scalars"),
    "nan samples": (upload(3, scalars=(NAN, 1.0, 0.5)), Outcome.REFUSED, "scalars"),
    "nan loss": (upload(3, scalars=(3.0, 1.0, NAN)), Outcome.REFUSED, "scalars"),
    "a scalar short": (upload(3, scalars=(3.0, 1.0)), Outcome.REFUSED, "2 scalars"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_reply_is_recorded_and_the_round_goes_on(sound, case):
    """The bad one has its outcome and reason; the round is that of the others alone."""
    reply, outcome, reason = BAD[case]
    others = [r for r in sound if r.client != 3]
    played = finish(ask()[0], [*others, *([reply] if reply else [])])
    records = {record.client: record for record in played.clients}
    assert records[3].outcome is outcome
    assert reason in records[3].reason
    assert "\n" not in records[3].reason
    assert all(records[c].outcome is Outcome.ACCEPTED for c in COHORT if c != 3)
    expected = finish(ask([c for c in COHORT if c != 3])[0], others)
    assert all(torch.equal(played.state["model"][n], t) for n, t in expected.state["model"].items())
    moved = sum(e.num_bytes for e in played.ledger if (e.client, e.direction) == (3, Direction.UPLOAD))
    assert moved == (len(reply.frame) if reply else 0)


@pytest.mark.parametrize("other", [tiny_party(tiny_model("head")), tiny_party(tiny_model(seed=1))])
def test_an_update_for_something_else_is_refused(sound, other):
    """Another layout or backbone is told by the identity of the frame."""
    values = {name: torch.zeros(shape) for name, shape in other.wire.plan.layout().items()}
    foreign = Reply(1, 3, other.wire.write(Kind.UPLOAD, 1, 3, {"delta": values}, (3.0, 1.0, 0.5)))
    played = finish(ask()[0], [*(r for r in sound if r.client != 3), foreign])
    record = next(record for record in played.clients if record.client == 3)
    assert record.outcome is Outcome.REFUSED
    assert "all parties need the same" in record.reason


def test_sections_of_the_wrong_shape_are_refused():
    """A frame with the right identity but other sections does not reach the algorithm."""
    frame = PARTY.wire.write(
        Kind.UPLOAD, 1, 3, {"delta": STATE["model"], "more": STATE["model"]}, (3.0, 1.0, 0.5)
    )
    assert finish(ask([3])[0], [Reply(1, 3, frame)]).clients[0].outcome is Outcome.REFUSED


def test_strangers_repeats_and_latecomers_only_cost_bytes(sound):
    """Replies nobody asked for, second ones and those of another round change nothing but the ledger."""
    expected = finish(ask()[0], sound)
    strays = [upload(10**6, delta=5.0), upload(COHORT[0], delta=5.0), upload(COHORT[0], round=2, delta=5.0)]
    played = finish(ask()[0], [*sound, *strays])
    assert same(replace(played, ledger=expected.ledger), expected)
    moved = [entry.num_bytes for entry in played.ledger]
    assert sum(moved) == sum(e.num_bytes for e in expected.ledger) + sum(len(r.frame) for r in strays)


LIES = {
    "fednova": [{"path_length": 1e300}, {"path_length": 1e-300}, {"path_length": math.inf}],
    "qfedavg": [{"lr": 1e-200}, {"start_loss": 5e-324}, {"start_loss": 1e308}, {"lr": -0.1}],
}


@pytest.mark.parametrize(("name", "lie"), [(name, lie) for name, lies in LIES.items() for lie in lies])
def test_numbers_that_techniques_divide_by_are_checked(name, lie):
    """One client's number neither ends the run nor the model, nor stops the others."""
    party = tiny_party(tiny_model(), algorithm=create("algorithm", name))
    flow, requests = ask([0, 2], party=party)
    (liar, honest), rule = serve(requests, party), party.algorithm.local
    uploads, count = party.algorithm.uploads, len(UPLOAD_SCALARS) + len(rule.scalars)
    message = party.wire.read(liar.frame, Kind.UPLOAD, 1, 0, uploads, count)
    told = dict(zip((*UPLOAD_SCALARS, *rule.scalars), message.scalars, strict=True)) | lie
    frame = party.wire.write(Kind.UPLOAD, 1, 0, message.streams, tuple(told.values()))
    played = finish(flow, [replace(liar, frame=frame), honest])
    assert [record.outcome for record in played.clients] == [Outcome.REFUSED, Outcome.ACCEPTED]
    assert "numbers from 1e-15 to 1e15" in played.clients[0].reason


@pytest.mark.parametrize("name", ["fedavg", "fednova"])
def test_updates_that_are_infinite_together_are_refused(name):
    """Each of them is finite, what a technique makes of them is not: the model stays, and records say why."""
    party = tiny_party(tiny_model(), algorithm=create("algorithm", name))
    own = (1.0,) * len(party.algorithm.local.scalars)
    replies = [upload(client, delta=3e38, scalars=(3.0, 1.0, 0.5, *own)) for client in (0, 2)]
    state = first_state(party)
    state["model"] = {name: tensor + 3e38 for name, tensor in state["model"].items()}
    played = finish(ask([0, 2], party=party, state=state)[0], replies)
    assert played.state is state
    assert {record.outcome for record in played.clients} == {Outcome.REFUSED}
    assert all("infinite or NaN values of 2 updates" in record.reason for record in played.clients)
    assert played.drift == {}


def test_what_downloads_cannot_carry_is_refused():
    """Finite each and sound, but the step that FedAvgM makes of two is over the 65504 of a half: the run goes on without."""
    model = tiny_model()
    wire = tiny_wire(model, "float16", delta=True)
    party = tiny_party(model, algorithm=create("algorithm", "fedavgm"), wire=wire)
    state, records = first_state(party), []
    for number, delta in enumerate((4e4, 4e4, 4e4, 1.0, 1.0), start=1):
        played = finish(ask([0], number, party, state)[0], [upload(0, round=number, delta=delta, wire=wire)])
        state = played.state
        records += played.clients
    accepted = [record.outcome is Outcome.ACCEPTED for record in records]
    assert accepted == [True, False, False, True, True]
    assert "what cannot be sent (" in records[1].reason


def test_if_nobody_answers_the_state_stays():
    """A round without any update leaves the server where it was."""
    played = finish(ask()[0], [])
    assert played.state is STATE
    assert [record.outcome for record in played.clients] == [Outcome.ABSENT] * len(COHORT)


def test_a_round_by_hand():
    """Deltas 1 and 5 with 30 and 10 samples move every value by 2."""
    replies = [upload(0, delta=1.0, scalars=(30.0, 1.0, 0.5)), upload(2, delta=5.0, scalars=(10.0, 1.0, 0.5))]
    played = finish(ask([0, 2])[0], replies)
    assert all(torch.allclose(played.state["model"][n], t + 2, atol=1e-6) for n, t in STATE["model"].items())
    assert [(r.num_examples, r.num_steps, r.loss) for r in played.clients] == [(30, 1, 0.5), (10, 1, 0.5)]


@settings(max_examples=50)
@given(frame=st.binary(max_size=400), client=st.integers(-2, 9), round=st.integers(0, 3))
def test_no_reply_can_raise(frame, client, round):
    """Whatever bytes come, from whomever, the round ends with a record for each client asked."""
    played = finish(ask()[0], [Reply(round, client, frame)])
    assert [record.client for record in played.clients] == COHORT
    assert not any(record.outcome is Outcome.ACCEPTED for record in played.clients)


def test_an_update_beyond_the_bound_is_refused(sound):
    """The norm is that of all that a client sends; one just within it is taken."""
    values = PARTY.wire.plan.num_shared_bytes // 4
    bounded = replace(PARTY, wire=replace(PARTY.wire, norm_bound=2.0 * math.sqrt(values) * (1 + 1e-6)))
    within, beyond = upload(0, delta=-2.0), upload(2, delta=2.01)
    played = finish(ask([0, 2], party=bounded)[0], [within, beyond])
    assert [record.outcome for record in played.clients] == [Outcome.ACCEPTED, Outcome.REFUSED]
    assert "federation.norm_bound is" in played.clients[1].reason
    assert all(torch.allclose(played.state["model"][n], t - 2.0) for n, t in STATE["model"].items())


def test_who_says_it_has_more_samples_than_any_is_refused():
    """What a client says weighs its update; the bound itself may be reached."""
    bounded = replace(PARTY, wire=replace(PARTY.wire, max_examples=30))
    replies = [upload(0, scalars=(30.0, 1.0, 0.5)), upload(2, scalars=(31.0, 1.0, 0.5))]
    played = finish(ask([0, 2], party=bounded)[0], replies)
    assert [record.outcome for record in played.clients] == [Outcome.ACCEPTED, Outcome.REFUSED]
    assert "says it has 31 samples, federation.max_examples is 30" in played.clients[1].reason


def test_twisted_frames_are_refused():
    """Noise, cuts, altered headers and false lengths, half of them with a right checksum; a million in tests/slow."""
    assert storm(3000, seed=1) == 0

"""A client's answer is the same alone and in a chunk, and its failures are its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contracts.cases import SIZES, federate, first_state, tiny_model, tiny_party, tiny_wire

from fedadapt.engines.local import LocalEngine
from fedadapt.federation.frame import Kind
from fedadapt.federation.messages import Request
from fedadapt.federation.round import play
from fedadapt.federation.serve import KEPT, UPLOAD_SCALARS, serve
from fedadapt.params import Group


def requests_of(party, clients, round=1):
    """What the server asks in a round."""
    return next(play(party.algorithm, party.wire, first_state(party), round, clients))


def read(party, reply):
    """What a reply says."""
    return party.wire.read(
        reply.frame, Kind.UPLOAD, reply.round, reply.client, party.algorithm.uploads, len(UPLOAD_SCALARS)
    )


@pytest.mark.parametrize("norms", ["frozen", "local"])
def test_chunks_do_not_change_results(norms):
    """In chunks of 1, 3 and all, every client sends the same up to rounding, and keeps the same."""
    model = tiny_model("parallel", norms)
    results = []
    for chunk in (1, 3, 16):
        party = tiny_party(model)
        replies = LocalEngine(party, chunk).exchange(requests_of(party, list(range(16))))
        assert sorted(reply.client for reply in replies) == list(range(16))
        results.append(({r.client: read(party, r) for r in replies}, dict(party.memory)))
    for messages, memory in results[1:]:
        for client, message in messages.items():
            expected = results[0][0][client]
            assert message.scalars == pytest.approx(expected.scalars, rel=1e-4)
            assert message.scalars[:2] == (SIZES[client], -(-SIZES[client] // 4))
            for name, tensor in expected.streams["delta"].items():
                torch.testing.assert_close(message.streams["delta"][name], tensor, rtol=1e-3, atol=2e-6)
        assert memory.keys() == results[0][1].keys()
        for client, kept in memory.items():
            for name, tensor in kept[KEPT].items():
                torch.testing.assert_close(tensor, results[0][1][client][KEPT][name], rtol=1e-4, atol=1e-6)


def test_an_engine_tells_its_progress_and_respects_the_model():
    """It counts the clients done; full fine-tuning is served one client at a time."""
    told = []
    party = tiny_party(tiny_model("full"))
    engine = LocalEngine(party, 8, told.append)
    engine.exchange(requests_of(party, [0, 3, 5]))
    assert told == [1, 2, 3]


def test_a_client_without_samples_fails_by_message():
    """The others in its chunk are served."""
    party = tiny_party(tiny_model(), sizes=(4, 0, 3))
    replies = serve(requests_of(party, [0, 1, 2]), party)
    assert [reply.client for reply in replies] == [0, 1, 2]
    assert [reply.failure for reply in replies] == ["", "client holds no training samples", ""]
    assert replies[1].frame == b""


def test_a_damaged_request_fails_alone():
    """Who got an altered download says so, and does not stop the others."""
    party = tiny_party(tiny_model())
    good = requests_of(party, [0, 1])
    bad = Request(1, 2, good[0].frame[:-1])
    replies = serve([*good, bad], party)
    assert [bool(reply.failure) for reply in replies] == [False, False, True]


def test_a_client_that_diverges_fails_alone():
    """Whose loss is no number is told apart from its cohort, whose updates are those they send without it."""
    party = tiny_party(tiny_model("parallel", "local"))
    state = {KEPT: {n: party.model.start[n].clone() for n in party.wire.plan.kept()}}
    state[KEPT]["bn1.bias"].fill_(float("inf"))
    party.memory[5] = state
    replies = serve(requests_of(party, [2, 5, 6]), party)
    assert [bool(reply.failure) for reply in replies] == [False, True, False]
    assert "training diverged" in replies[1].failure
    assert "train.lr=0.05" in replies[1].failure
    without = tiny_party(tiny_model("parallel", "local"))
    for reply, expected in zip(replies[::2], serve(requests_of(without, [2, 6]), without), strict=True):
        for name, tensor in read(without, expected).streams["delta"].items():
            torch.testing.assert_close(
                read(party, reply).streams["delta"][name], tensor, rtol=1e-3, atol=2e-6
            )


def test_local_norms_stay_with_the_client():
    """They are kept in memory, are not in the frame, and are what the client goes on from."""
    party = tiny_party(tiny_model("parallel", "local"))
    (reply,) = serve(requests_of(party, [4]), party)
    sent = read(party, reply).streams["delta"]
    kept = party.memory[4][KEPT]
    assert {party.model.groups[name] for name in kept} == {Group.NORM_AFFINE, Group.NORM_STATISTICS}
    assert not set(kept) & set(sent)
    assert all(not torch.equal(tensor, party.model.start[name]) for name, tensor in kept.items())
    before = {name: tensor.clone() for name, tensor in kept.items()}
    serve(requests_of(party, [4], round=2), party)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in party.memory[4][KEPT].items())
    fresh = tiny_party(tiny_model("parallel", "local"))
    (first,) = serve(requests_of(fresh, [4], round=2), fresh)
    remembering = tiny_party(tiny_model("parallel", "local"), memory={4: {KEPT: before}})
    (second,) = serve(requests_of(remembering, [4], round=2), remembering)
    assert first.frame != second.frame


def test_shared_norms_leave_no_memory():
    """With nothing to keep, a client remembers nothing."""
    for norms in ("frozen", "averaged"):
        party = tiny_party(tiny_model("parallel", norms))
        serve(requests_of(party, [0, 1]), party)
        assert party.memory == {}


def test_the_delta_is_the_way_from_the_download():
    """A party that starts from other values than the pretrained ones sends the difference to what it got."""
    party = tiny_party(tiny_model("head"), lr=1e-12)
    moved = {"model": {name: tensor + 1 for name, tensor in first_state(party)["model"].items()}}
    requests = next(play(party.algorithm, party.wire, moved, 1, [7]))
    (reply,) = serve(requests, party)
    assert all(float(t.abs().max()) < 1e-6 for t in read(party, reply).streams["delta"].values())


def test_the_rate_follows_the_schedule():
    """A cosine schedule takes smaller steps in later rounds."""
    model = tiny_model("head")
    party = replace(tiny_party(model, schedule="cosine", momentum=0.0), rounds=2)
    constant = replace(tiny_party(model, momentum=0.0), rounds=2)
    assert party.train.rate(1, 2) == 0.05
    assert party.train.rate(2, 2) == pytest.approx(0.025)
    sizes = []
    for site in (party, constant):
        (reply,) = serve(requests_of(site, [0], round=2), site)
        sizes.append(read(site, reply).streams["delta"]["fc.weight"].norm())
    assert float(sizes[0] / sizes[1]) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("norms", ["averaged", "pooled"])
def test_running_statistics_are_not_rounded(norms):
    """Whatever the codec, both ways: a variance that rounding drives below zero makes every output NaN."""
    model = tiny_model(norms=norms)
    states = []
    for codec, options in (("float32", {}), ("rotate > int2(rounding=nearest)", {"delta": True})):
        party = tiny_party(model, wire=tiny_wire(model, codec, **options))
        states.append([state["model"] for state in federate(party, [[0, 7], [0, 7]])])
    (_, exact, _), (start, coarse, after) = states
    moving = set(model.moving)
    assert moving
    assert all(torch.equal(coarse[name], exact[name]) for name in moving)
    assert not any(torch.equal(coarse[name], exact[name]) for name in coarse.keys() - moving)
    assert all(not torch.equal(coarse[name], start[name]) for name in moving)
    assert all((after[name] > 0).all() for name in moving if name.endswith("running_var"))

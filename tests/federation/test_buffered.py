"""Asynchronous rounds: the clock decides who arrives, staleness is counted, and what is under way is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from contracts.cases import federate, first_state, tiny_model, tiny_party

from fedadapt.algorithms import Update
from fedadapt.engines.local import LocalEngine
from fedadapt.federation.buffered import CLOCK, FLIGHT, play_buffered
from fedadapt.federation.messages import Reply
from fedadapt.federation.population import Population
from fedadapt.federation.sampling import Pool
from fedadapt.federation.sampling.uniform import uniform
from fedadapt.params import from_bytes, to_bytes
from fedadapt.registry import create
from fedadapt.runs.records import Direction, Outcome
from fedadapt.seeds import Seeds

SIZES = (4,) * 9
SEEDS = Seeds(5)


def make_party(buffer=3, **train):
    """Nine clients under FedBuff."""
    return tiny_party(
        tiny_model("head"), sizes=SIZES, algorithm=create("algorithm", "fedbuff", {"buffer": buffer}), **train
    )


def play(party, state, round, *, concurrency=5, slowness=0.0, change=lambda replies: replies, asked=None):
    """One round, with what happens to the replies on their way."""
    population = Population(Pool(9), concurrency, SEEDS, uniform(), slowness=slowness)
    flow = play_buffered(party.algorithm, party.wire, state, round, population)
    requests = next(flow)
    while True:
        if asked is not None:
            asked.append([request.client for request in requests])
        try:
            requests = flow.send(change(LocalEngine(party, 16).exchange(requests)))
        except StopIteration as stop:
            return stop.value


def rounds(party, count, state=None, first=1, **options):
    """Several rounds one after the other."""
    state, found = first_state(party) if state is None else state, []
    for number in range(first, first + count):
        found.append(play(party, state, number, **options))
        state = found[-1].state
    return found


def in_flight(state):
    """Who is at work, and on the model of which round."""
    return {
        int(name.split(".")[0]): int(when[0]) for name, when in state[FLIGHT].items() if name.endswith("when")
    }


def test_a_buffer_of_updates_is_a_step():
    """Each round takes three, the clock goes on, and five are at work but for the slots freed by the last arrival."""
    found = rounds(make_party(), 4)
    times = [float(played.state[CLOCK]["now"]) for played in found]
    assert times == sorted(times)
    assert times[0] > 0
    for played in found:
        assert [record.outcome for record in played.clients] == [Outcome.ACCEPTED] * 3
        assert len(in_flight(played.state)) == 4


def test_arrivals_come_in_the_order_of_the_clock():
    """The first round by hand: of the durations drawn, the shortest come first, and each frees a place."""
    asked = []
    (played,) = rounds(make_party(), 1, asked=asked)
    (started,) = asked
    lasts = {c: abs(float(SEEDS.numpy("duration", round=1, client=c).standard_normal())) for c in started}
    begins, working, arrived = dict.fromkeys(started[:5], 0.0), set(started[:5]), []
    for following in [*started[5:], None]:
        first = min(working, key=lambda c: begins[c] + lasts[c])
        working.remove(first)
        arrived.append(first)
        if following is not None:
            begins[following] = begins[first] + lasts[first]
            working.add(following)
    assert len(started) == 7
    assert [record.client for record in played.clients] == sorted(arrived)
    assert set(in_flight(played.state)) == working
    assert float(played.state[CLOCK]["now"]) == pytest.approx(begins[arrived[-1]] + lasts[arrived[-1]])


def test_late_updates_count_by_their_staleness():
    """The step of round 2 is the mean of the arrivals, each over the root of one plus how many rounds old it is."""
    party = make_party()
    first, second = rounds(party, 2)
    before = in_flight(first.state)
    arrived = [record.client for record in second.clients]
    late = [client for client in arrived if client in before]
    assert late
    # What was in flight is known from the state; who started in round 2 is trained again by itself.
    replay = play(make_party(), first.state, 2)
    assert to_bytes(replay.state) == to_bytes(second.state)
    expected = torch.zeros_like(first.state["model"]["fc.weight"])
    for client in arrived:
        sent_in = before.get(client, 2)
        base = first_state(party) if sent_in == 1 else {"model": first.state["model"]}
        delta = _trained(make_party(), base, sent_in, client)
        expected += delta / (1 + 2 - sent_in) ** 0.5 / 3
    moved = second.state["model"]["fc.weight"] - first.state["model"]["fc.weight"]
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


def _trained(party, state, round, client):
    """What one client changes alone."""
    alone = federate(party, [[client]], first=round, state=state)
    return alone[-1]["model"]["fc.weight"] - alone[0]["model"]["fc.weight"]


def test_a_round_goes_on_from_bytes_bit_for_bit():
    """Stopped after round 2 and taken from disk, rounds 3 and 4 are those of a run that never stopped."""
    whole = rounds(make_party(), 4)
    stored = from_bytes(to_bytes(whole[1].state))
    after = rounds(make_party(), 2, state=stored, first=3)
    assert to_bytes(after[-1].state) == to_bytes(whole[-1].state)
    assert [played.clients for played in after] == [played.clients for played in whole[2:]]
    assert [played.ledger for played in after] == [played.ledger for played in whole[2:]]


def test_every_byte_is_in_the_ledger():
    """Downloads are booked when a client starts, uploads when they arrive; frames under way are not yet."""
    asked = []
    found = rounds(make_party(), 3, asked=asked)
    for played, started in zip(found, asked, strict=True):
        ways = {way: {e.client for e in played.ledger if e.direction is way} for way in Direction}
        assert ways[Direction.DOWNLOAD] == set(started)
        assert ways[Direction.UPLOAD] == {record.client for record in played.clients}


def test_failures_free_their_place_and_the_buffer_fills_with_others():
    """Clients that fail are recorded, and the round takes three sound updates all the same."""

    def change(replies):
        return [Reply(r.round, r.client, failure="no power") if r.client % 3 == 0 else r for r in replies]

    for played in rounds(make_party(), 3, change=change):
        outcomes = [record.outcome for record in played.clients]
        assert outcomes.count(Outcome.ACCEPTED) == 3
        assert all((r.client % 3 == 0) == (r.outcome is Outcome.FAILED) for r in played.clients)


def test_slow_clients_take_longer():
    """With paces spread, the first arrival of the first round is the least |z| e^(z'_k) of the five who start."""
    asked = []
    (played,) = rounds(make_party(buffer=1), 1, slowness=1.0, asked=asked)
    lasts = [
        abs(float(SEEDS.numpy("duration", round=1, client=c).standard_normal()))
        * math.exp(SEEDS.normal("speed", client=c))
        for c in asked[0][:5]
    ]
    assert float(played.state[CLOCK]["now"]) == pytest.approx(min(lasts))


def test_why_a_client_under_way_will_not_answer_survives_a_stop():
    """Who drops out lands as absent, also when it does so in a later round, after the state was on disk."""

    def change(replies):
        gone = Reply(0, 0, failure="dropped out", outcome=Outcome.ABSENT)
        return [replace(gone, round=r.round, client=r.client) if r.client % 2 else r for r in replies]

    first = play(make_party(), first_state(make_party()), 1)
    gone = play(make_party(), first.state, 2, change=change)
    later = rounds(make_party(), 8, state=from_bytes(to_bytes(gone.state)), first=3)
    records = [record for played in later for record in played.clients]
    lost = {r.client for r in records if (r.outcome, r.reason) == (Outcome.ABSENT, "dropped out")}
    assert lost
    assert lost <= set(in_flight(gone.state))


def test_a_round_in_which_everybody_fails_ends(monkeypatch):
    """After so many arrivals for each update wanted, however many clients are left to ask."""
    monkeypatch.setattr("fedadapt.federation.buffered.MAX_ARRIVALS", 2)
    (played,) = rounds(make_party(buffer=2), 1, change=lambda replies: [])
    assert len(played.clients) == 4


def test_strays_only_cost_bytes():
    """A reply that nobody asked for, also one of a client under way, changes nothing but the ledger."""
    expected = rounds(make_party(), 2)
    strays = [Reply(2, client, b"noise") for client in range(9)]
    played = play(make_party(), expected[0].state, 2, change=lambda replies: [*replies, *strays])
    assert to_bytes(played.state) == to_bytes(expected[1].state)
    assert played.clients == expected[1].clients
    assert len(played.ledger) == len(expected[1].ledger) + 9


def test_if_everybody_fails_the_model_stays():
    """The round ends, with a record of each."""
    party = make_party()
    (played,) = rounds(party, 1, change=lambda replies: [])
    assert {record.outcome for record in played.clients} == {Outcome.ABSENT}
    assert len(played.clients) == 9
    before = first_state(party)["model"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in played.state["model"].items())


def test_staleness_by_hand():
    """Deltas 1 and 1, the second three steps old: (1 + 1 / 2) / 2."""
    algorithm = create("algorithm", "fedbuff")
    ones = {"delta": {"w": torch.ones(1)}}
    state = algorithm.init({"w": torch.zeros(1)})
    after = algorithm.step(state, [Update(0, 9, 1, ones), Update(1, 1, 1, ones, staleness=3)])
    assert after["model"]["w"].item() == pytest.approx(0.75)

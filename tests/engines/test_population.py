"""Who drops out, comes late or is not needed gets no work, and a reason."""

from __future__ import annotations

from dataclasses import replace

from fedadapt.engines.population import PopulationEngine
from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.population import Population
from fedadapt.federation.sampling import Pool
from fedadapt.federation.sampling.uniform import uniform
from fedadapt.runs.records import Outcome
from fedadapt.seeds import Seeds

PLAIN = Population(Pool(20), 4, Seeds(0), uniform())
REQUESTS = [Request(1, client, b"model") for client in range(20)]


class Answering:
    """An engine whose clients answer, but for those that fail."""

    def __init__(self, failing=()):
        self.failing, self.asked, self.on_clients = failing, [], lambda count: None

    def exchange(self, requests):
        self.asked += requests
        self.on_clients(len(requests))
        return [
            Reply(r.round, r.client, failure="no power")
            if r.client in self.failing
            else Reply(1, r.client, b"up")
            for r in requests
        ]


def exchange(population, engine, num_steps=lambda client: client + 1):
    """The replies by client; client k has k + 1 steps to take."""
    seen = []
    wrapped = PopulationEngine(engine, population, num_steps, seen.append)
    replies = wrapped.exchange(REQUESTS)
    assert sorted(reply.client for reply in replies) == list(range(20))
    assert seen == sorted(seen)
    assert seen[-1] == 20
    return {reply.client: reply for reply in replies}


def test_without_habits_requests_pass_through():
    """Everybody is asked for all the work, and nobody is left out, whatever the cohort."""
    engine = Answering()
    replies = exchange(PLAIN, engine)
    assert sorted(request.client for request in engine.asked) == list(range(20))
    assert {request.effort for request in engine.asked} == {1.0}
    assert all(reply.frame == b"up" for reply in replies.values())


def test_dropouts_are_absent():
    """They are not trained, and said to have dropped out."""
    population, engine = replace(PLAIN, dropout=0.5), Answering()
    replies = exchange(population, engine)
    gone = {client for client in range(20) if not population.conduct(1, client, 1).answers}
    assert 0 < len(gone) < 20
    assert {request.client for request in engine.asked} == set(range(20)) - gone
    assert {client for client, reply in replies.items() if reply.outcome is Outcome.ABSENT} == gone
    assert {replies[client].failure for client in gone} == {"dropped out"}


def test_the_deadline_by_hand():
    """With a step a second and seven seconds, clients 0 to 6 are on time, and client 7 would have taken 8 s."""
    engine = Answering()
    replies = exchange(replace(PLAIN, deadline_s=7.0), engine)
    assert [request.client for request in engine.asked] == list(range(7))
    assert {reply.outcome for client, reply in replies.items() if client > 6} == {Outcome.LATE}
    assert replies[7].failure == "would have taken 8 s, the deadline is 7 s"


def test_the_first_who_are_done_are_taken():
    """Of 20 asked for 4 updates, the four with the fewest steps are trained; the others are told when the round closed."""
    engine = Answering()
    replies = exchange(replace(PLAIN, over_selection=5.0), engine)
    assert [request.client for request in engine.asked] == [0, 1, 2, 3]
    assert replies[4].outcome is Outcome.LATE
    assert replies[4].failure == "would have taken 5 s, 4 updates were there after 4 s"


def test_who_fails_is_made_up_for_by_the_next():
    """Clients 1 and 2 fail, so 4 and 5 are taken as well."""
    engine = Answering(failing=(1, 2))
    replies = exchange(replace(PLAIN, over_selection=5.0), engine)
    assert [request.client for request in engine.asked] == [0, 1, 2, 3, 4, 5]
    assert replies[1].outcome is Outcome.FAILED
    assert replies[6].failure.endswith("4 updates were there after 6 s")


def test_if_too_few_are_left_the_round_makes_do():
    """All but two drop out or fail: those two are taken and nobody is waited for."""
    engine = Answering(failing=range(2, 20))
    replies = exchange(replace(PLAIN, over_selection=5.0), engine)
    assert len(engine.asked) == 20
    assert sum(bool(reply.frame) for reply in replies.values()) == 2


def test_equal_times_are_in_a_random_order():
    """When all have the same work, it is not always the lowest numbers that are first."""
    engine = Answering()
    exchange(replace(PLAIN, over_selection=5.0), engine, num_steps=lambda client: 3)
    chosen = [request.client for request in engine.asked]
    assert len(chosen) == 4
    assert chosen != [0, 1, 2, 3]


def test_shares_of_the_work_go_with_the_requests():
    """At least half of it, each client its own share; the frame is the same object, so that it is read once."""
    engine, population = Answering(), replace(PLAIN, least_work=0.5)
    exchange(population, engine)
    for request in engine.asked:
        assert request.effort == population.conduct(1, request.client, 1).effort
        assert request.frame is REQUESTS[0].frame
    assert len({request.effort for request in engine.asked}) == 20

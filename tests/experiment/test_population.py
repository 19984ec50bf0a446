"""Cross-device runs: clients that are sampled, drop out, come late, do part of the work, or all stay away."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny import StopAfter, Stopped, outcome, tiny

from fedadapt.errors import ConfigError
from fedadapt.experiment import resume, run
from fedadapt.experiment.build import build
from fedadapt.experiment.federated import begin
from fedadapt.experiment.forecast import forecast
from fedadapt.params import to_bytes
from fedadapt.runs.records import FRAMING, Direction, Outcome
from fedadapt.runs.store import RunStore

SETTINGS = ("data.limit=96", "data.num_clients=12", "data.source.size=8", "cohort=4", "train.batch_size=2")
HABITS = (
    "population.over_selection=2",
    "population.dropout=0.2",
    "population.slowness=1",
    "population.deadline_s=6",
    "population.least_work=0.3",
    "population.sampling={name = 'available', least = 0.5}",
)
TECHNIQUES = {
    "memory": ("algorithm=scaffold", "norms=local", *HABITS),
    "versions": ("codec=int8", "codec.error_feedback=true", *HABITS),
    "buffer": (
        "algorithm=fedbuff",
        "algorithm.buffer=3",
        "population.dropout=0.3",
        "population.slowness=1",
        "population.least_work=0.3",
    ),
}


def final(path):
    """The state after the last round."""
    with RunStore.read(path) as store:
        return store.state()


@pytest.mark.parametrize("settings", TECHNIQUES.values(), ids=TECHNIQUES)
def test_a_stopped_run_ends_as_if_it_had_not_been(settings, tmp_path):
    """With every habit at once: the same bits in state, memory, records, metrics and ledger after a stop."""
    config = tiny(*SETTINGS, "rounds=4", *settings)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "stopped", watcher=StopAfter(2))
    assert outcome(resume(tmp_path / "stopped" / "tiny")) == outcome(whole)
    with RunStore.read(whole) as store:
        seen = Counter(record.outcome for record in store.clients())
        assert {Outcome.ACCEPTED, Outcome.ABSENT} <= set(seen)
        assert all(record.reason for record in store.clients() if record.outcome is not Outcome.ACCEPTED)
        assert len({record.num_steps for record in store.clients()}) > 2


def test_every_absence_is_in_the_records_and_its_download_in_the_ledger(tmp_path):
    """Who was asked has a download, an outcome and, unless it counted, a cause; only who counted has an upload."""
    config = tiny(*SETTINGS, "rounds=3", *HABITS)
    population = build(config).population
    with RunStore.read(run(config, tmp_path)) as store:
        causes = Counter()
        for number in (1, 2, 3):
            records, ledger = store.clients(number), store.ledger(number)
            assert [record.client for record in records] == population.asked(number)
            ways = {way: {e.client for e in ledger if e.direction is way} for way in Direction}
            assert ways[Direction.DOWNLOAD] == {record.client for record in records}
            accepted = {record.client for record in records if record.outcome is Outcome.ACCEPTED}
            assert ways[Direction.UPLOAD] == accepted
            assert len(accepted) <= 4
            gone = {r.client for r in records if r.reason == "dropped out"}
            assert gone == {
                c for c in population.asked(number) if not population.conduct(number, c, 1).answers
            }
            causes.update((record.outcome, record.reason[:10]) for record in records)
        assert {(Outcome.ACCEPTED, ""), (Outcome.ABSENT, "dropped ou"), (Outcome.LATE, "would have")} <= set(
            causes
        )


def test_the_chunk_size_changes_no_result(tmp_path):
    """Clients of different shares of the work, one by one or together, come to the same but for rounding."""
    found = []
    for chunk in ("1", "4"):
        path = run(tiny(*SETTINGS, "rounds=2", *HABITS, f"engine.chunk={chunk}"), tmp_path / chunk)
        found.append((final(path), outcome(path)))
    (one, first), (together, second) = found
    torch.testing.assert_close(together, one, rtol=1e-4, atol=1e-6)
    assert first["ledger"] == second["ledger"]
    assert [(r.client, r.outcome, r.num_steps) for r in first["clients"]] == [
        (r.client, r.outcome, r.num_steps) for r in second["clients"]
    ]


def test_part_of_the_work_is_its_first_steps(tmp_path):
    """Clients of 8 samples and batches of 2 take 2 to 4 steps, as their shares of four rounded up say."""
    config = tiny(*SETTINGS, "rounds=1", "cohort=12", "population.least_work=0.3")
    population = build(config).population
    with RunStore.read(run(config, tmp_path)) as store:
        for record in store.clients(1):
            effort = population.conduct(1, record.client, 4).effort
            assert record.num_steps == -int(-4 * effort // 1)
        assert len({record.num_steps for record in store.clients(1)}) > 1


def test_a_round_that_everybody_drops_out_of_is_recorded_as_empty(tmp_path):
    """The downloads are in the ledger, every client has its cause, the model stays, and the run goes on to its end."""
    path = run(tiny(*SETTINGS, "rounds=2", "population.dropout=1", "data.local_test_fraction=0.3"), tmp_path)
    first = build(tiny(*SETTINGS)).first_state()
    assert to_bytes(final(path)) == to_bytes(first)
    with RunStore.read(path) as store:
        assert [summary.round for summary in store.rounds()] == [0, 1, 2]
        assert store.rounds()[2].metrics["loss"] == store.rounds()[0].metrics["loss"]
        assert "train_loss" not in store.rounds()[1].metrics
        assert {(r.outcome, r.reason) for r in store.clients()} == {(Outcome.ABSENT, "dropped out")}
        assert len(store.clients(1)) == 4
        assert {entry.direction for entry in store.ledger()} == {Direction.DOWNLOAD}
        assert all(store.memory(client) is None for client in range(12))


@pytest.mark.parametrize("settings", [("codec=int8",), ("algorithm=fedbuff", "algorithm.buffer=2")])
def test_empty_rounds_with_versions_and_buffers(tmp_path, settings):
    """Neither a step between versions nor what is under way moves the model when nobody answers."""
    path = run(tiny(*SETTINGS, "rounds=2", "population.dropout=1", *settings), tmp_path)
    first = build(tiny(*SETTINGS, *settings)).first_state()["model"]
    torch.testing.assert_close(final(path)["model"], first, rtol=0, atol=0)


def test_nobody_there_to_be_asked_is_an_empty_round(tmp_path):
    """A round that finds no available client has no records and no bytes, and the next one is played."""
    settings = "population.sampling={name = 'available', least = 0.0, most = 0.0}"
    with RunStore.read(run(tiny(*SETTINGS, "rounds=2", settings), tmp_path)) as store:
        assert (store.last_round, store.clients(), store.ledger()) == (2, [], [])


def test_a_million_clients_leave_traces_only_of_those_seen(tmp_path):
    """Of a million virtual clients the run keeps memory, records and bytes of the few that were asked."""
    config = tiny(
        "data.num_clients=1000000",
        "data.partition={name = 'virtual', size = 6, sigma = 0.5, alpha = 1.0}",
        "data.source.size=8",
        "norms=local",
        "cohort=3",
        "rounds=2",
        "population.sampling=by_size",
    )
    with pytest.raises(Stopped):
        run(config, tmp_path, watcher=StopAfter(1))
    path = resume(tmp_path / "tiny")
    experiment = build(config)
    with RunStore.read(path) as store:
        seen = {record.client for record in store.clients()}
        assert len(seen) == 6
        assert seen == {c for number in (1, 2) for c in experiment.population.asked(number)}
        assert all(store.memory(client) is not None for client in seen)
        assert store.memory(next(c for c in range(10) if c not in seen)) is None
        assert all(r.num_examples == len(experiment.clients.train[r.client]) for r in store.clients())
        assert {entry.client for entry in store.ledger()} == seen


def test_bytes_of_over_selection_are_foretold(tmp_path):
    """Eight downloads and four uploads a round, when all of the eight answer."""
    config = tiny(*SETTINGS, "rounds=2", "population.over_selection=2")
    told = forecast(build(config))
    with RunStore.read(run(config, tmp_path)) as store:
        ledger = store.ledger()
    moved = {way: sum(e.num_bytes for e in ledger if e.direction is way) for way in Direction}
    assert {way.value: 2 * told["round_bytes"][way.value] for way in Direction} == {
        way.value: count for way, count in moved.items()
    }
    assert told["run_bytes"] == sum(moved.values())
    assert FRAMING in {entry.group for entry in ledger}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("cohort=13",),
            r"a round would ask 13 clients, but data.num_clients is 12; set cohort to at most 12$",
        ),
        (
            ("cohort=10", "population.over_selection=1.5"),
            r"ask 15 clients with population.over_selection=1.5, but data.num_clients is 12; set cohort to at most 8$",
        ),
        (("population.slowness=1",), "slowness is 1, but every round waits for everybody; set"),
        (("population.dropout=1.5",), "key 'population.dropout' is 1.5: "),
        (
            ("population.sampling=nightly",),
            "unknown sampling 'nightly'; known: available, by_size, diurnal, uniform",
        ),
        (("population.patience=3",), "unknown key 'population.patience'"),
        (
            ("algorithm=fedbuff", "algorithm.buffer=2", "population.deadline_s=3"),
            "population.deadline_s cannot be used with algorithm FedBuff: late updates are taken, at less weight",
        ),
        (
            ("algorithm=fedbuff", "algorithm.buffer=2", "population.over_selection=2"),
            "population.over_selection cannot be used with algorithm FedBuff: every update that comes is taken",
        ),
        (
            ("algorithm=fedbuff", "algorithm.buffer=2", "population.sampling=by_size"),
            "population.sampling cannot be used with algorithm FedBuff: whoever is free is asked; leave it out",
        ),
        (
            ("algorithm=fedbuff", "algorithm.buffer=2", "codec=int8"),
            "codec.delta cannot be used with algorithm FedBuff: clients are at work on models .*; set it to false$",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(tmp_path, settings, message):
    """Nothing is left behind, and the message says what is wrong and what to do."""
    with pytest.raises(ConfigError, match=message):
        run(tiny(*SETTINGS, *settings), tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_between_sites_nothing_is_simulated(tmp_path):
    """A federation refuses habits of simulated clients."""
    with pytest.raises(
        ConfigError, match=r"^section population is about simulated clients, but sites come and go"
    ):
        begin(tiny("population.dropout=0.1"), tmp_path)


def test_fewer_updates_than_a_rule_needs_change_nothing_and_say_so(tmp_path):
    """Krum against one attacker takes five updates; in a round in which some drop out the model stays, with the reason."""
    config = tiny(
        "algorithm={name='krum', attackers=1}",
        "codec=int4",
        "codec.error_feedback=true",
        "data.num_clients=5",
        "population.dropout=0.4",
        "rounds=2",
    )
    with RunStore.read(run(config, tmp_path)) as store:
        by_round = {number: [c for c in store.clients() if c.round == number] for number in (1, 2)}
        begun = store.rounds()[0].metrics["loss"]
        for summary in store.rounds()[1:]:
            came = [c for c in by_round[summary.round] if c.outcome is not Outcome.ABSENT]
            assert 0 < len(came) < 5
            assert {(c.outcome, c.reason) for c in came} == {
                (Outcome.REFUSED, f"{len(came)} updates came, Krum needs at least 5")
            }
            assert summary.metrics["loss"] == begun
        assert [store.memory(client) for client in range(5)] == [None] * 5


def test_a_buffer_smaller_than_a_rule_needs_is_refused():
    """The cohort would do, the buffer does not."""
    chain = "algorithm={name='chain', of=[{name='fedbuff', buffer=3}, {name='krum', attackers=1}]}"
    with pytest.raises(ConfigError, match="at least 5 clients, there are 3"):
        build(tiny(chain, "data.num_clients=8"))


@pytest.mark.parametrize(
    "habits", [("cohort=2", "population.over_selection=1.5"), ("attack=sign_flip", "attack.share=0.5")]
)
def test_the_exchange_before_round_one_is_asked_of_everybody(tmp_path, habits):
    """Nobody is late for it or lies in it: the head comes of all samples."""
    config = tiny("head={name='trained', start='class_means'}", "rounds=1", *habits)
    with RunStore.read(run(config, tmp_path)) as store:
        outcomes = [c.outcome for c in store.clients() if c.round == 0]
    assert outcomes == [Outcome.ACCEPTED] * 4


@pytest.mark.parametrize(
    "setting", ["train.lr=inf", "algorithm={name='fedprox', mu=inf}", "data.local_test_fraction=nan"]
)
def test_no_setting_is_infinite(setting):
    """Whatever is a number is a finite one."""
    with pytest.raises(ConfigError, match="finite"):
        build(tiny(setting))

"""A run is a function of its configuration: whole, in pieces, in chunks."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from tiny import EVERYTHING, StopAfter, Stopped, outcome, tiny

from fedadapt.backbones.weights import save_weights
from fedadapt.engines.local import LocalEngine
from fedadapt.errors import DataError, Interrupted, RunError
from fedadapt.experiment import resume, run
from fedadapt.experiment.build import build
from fedadapt.experiment.export import export
from fedadapt.experiment.forecast import forecast
from fedadapt.experiment.party_data import build_data
from fedadapt.experiment.run import Watcher
from fedadapt.registry import names
from fedadapt.runs.records import Direction, Outcome
from fedadapt.runs.store import FILE, RunStore

PACKED = ("codec=rotate > int4 > zstd", "codec.error_feedback=true", "codec.groups.head=int8", "cohort=3")
"""Settings under which both directions are lossy, and both ends remember for it."""

ADAPTERS = ("head", "norm_head", "parallel", "full")
TRAIN = 1438
"""Train images of the digits."""


def final(path):
    """The state of a run's last round."""
    with RunStore.read(path) as store:
        return store.state()


def test_one_seed_one_run(tmp_path):
    """Two runs with one seed have the same state bit for bit, and the same ledger, clients and metrics."""
    assert outcome(run(tiny(), tmp_path / "a")) == outcome(run(tiny(), tmp_path / "b"))


def test_another_seed_another_run(tmp_path):
    """The seed decides the state; what moves is the same."""
    first, second = (outcome(run(tiny("rounds=1", f"seed={s}"), tmp_path / str(s))) for s in (0, 1))
    assert first["state"] != second["state"]
    assert first["ledger"] == second["ledger"]


@pytest.mark.parametrize(
    "settings", [(), ("norms=local", "data.partition=dirichlet")], ids=["frozen", "local"]
)
def test_the_chunk_size_changes_no_result(tmp_path, settings):
    """Clients trained one by one, in pairs or all together come to the same, but for rounding."""
    states, ledgers = [], []
    for chunk in ("1", "3", "4"):
        path = run(tiny(*settings, "rounds=2", f"engine.chunk={chunk}"), tmp_path / chunk)
        states.append(final(path))
        ledgers.append(outcome(path)["ledger"])
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=1e-4, atol=1e-6)
    assert ledgers[0] == ledgers[1] == ledgers[2]


@pytest.mark.parametrize("download", ["float32", "int8"])
def test_lossy_uploads_keep_what_they_lost_whatever_the_chunk(tmp_path, download):
    """Chunks of 1 and 4 end in the same state and memory up to rounding, which may tip a few values to a neighbour."""
    states = []
    for chunk in ("1", "4"):
        settings = ("codec=int8(rounding=nearest)", "codec.error_feedback=true", f"codec.download={download}")
        path = run(tiny(*settings, "rounds=2", f"engine.chunk={chunk}"), tmp_path / chunk)
        with RunStore.read(path) as store:
            kept = [store.memory(client)["residual:delta"] for client in range(4)]
        states.append((final(path)["model"], kept))
    (model, kept), (other_model, other_kept) = states
    torch.testing.assert_close(other_model, model, rtol=1e-2, atol=2e-4)
    torch.testing.assert_close(other_kept, kept, rtol=1e-2, atol=2e-3)


def test_the_full_model_goes_through_low_rank(tmp_path):
    """With factors of rank 2, what was lost fed back both ways, full fine-tuning learns on a tenth of the bytes."""
    settings = (
        "adapter=full",
        "codec=lowrank(rank=2) > int8 > zstd",
        "codec.error_feedback=true",
        "rounds=2",
    )
    small, whole = run(tiny(*settings), tmp_path / "a"), run(tiny("adapter=full", "rounds=2"), tmp_path / "b")
    with RunStore.read(small) as store, RunStore.read(whole) as plain:
        moved, all_of_it = (sum(e.num_bytes for e in one.ledger()) for one in (store, plain))
        assert moved < 0.1 * all_of_it
        losses = [summary.metrics["loss"] for summary in store.rounds()]
        assert losses[-1] < losses[0]
        assert all(record.outcome is Outcome.ACCEPTED for record in store.clients())


@pytest.fixture
def moved(monkeypatch):
    """Bytes of all frames that an engine in this process carries, by direction."""
    moved = {Direction.DOWNLOAD: 0, Direction.UPLOAD: 0}
    exchange = LocalEngine.exchange

    def counting(self, requests):
        replies = exchange(self, requests)
        moved[Direction.DOWNLOAD] += sum(len(request.frame) for request in requests)
        moved[Direction.UPLOAD] += sum(len(reply.frame) for reply in replies)
        return replies

    monkeypatch.setattr(LocalEngine, "exchange", counting)
    return moved


@pytest.mark.parametrize(
    "codec", ["int8", "int2(rounding=nearest) @2 int4 @4 float16", "rotate > int4 > zstd"]
)
def test_the_ledger_of_packed_frames_is_the_frames(tmp_path, moved, codec):
    """With steps down and codes up, every byte that moved is in the ledger; known sizes are foretold."""
    config = tiny(f"codec={codec}", "cohort=2", "rounds=4")
    with RunStore.read(run(config, tmp_path)) as store:
        ledger = store.ledger()
    for way, expected in moved.items():
        assert sum(entry.num_bytes for entry in ledger if entry.direction is way) == expected
    told = forecast(build(config))
    assert told["run_bytes"] == (None if "zstd" in codec else sum(moved.values()))
    assert told["clients_seen"] == len({entry.client for entry in ledger})


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_ledger_is_the_frames_and_the_forecast(tmp_path, moved, adapter):
    """Bytes in the ledger are those of the frames that moved, and those foretold, for every adapter."""
    config = tiny(f"adapter={adapter}", "cohort=3", "rounds=2")
    path = run(config, tmp_path)
    with RunStore.read(path) as store:
        ledger = store.ledger()
        totals = store.ledger_totals()
    for way, expected in moved.items():
        assert sum(entry.num_bytes for entry in ledger if entry.direction is way) == expected
    assert sum(total[3] for total in totals) == sum(moved.values())
    told = forecast(build(config))
    assert told["run_bytes"] == sum(moved.values())
    assert {way.value: 2 * told["round_bytes"][way.value] for way in moved} == {
        w.value: n for w, n in moved.items()
    }


def test_adapters_are_compared_under_one_protocol(tmp_path):
    """All adapters start from the same accuracy, see the same cohorts, and differ in what they send."""
    outcomes = {a: outcome(run(tiny(f"adapter={a}", "cohort=3", "rounds=2"), tmp_path / a)) for a in ADAPTERS}
    assert len({o["rounds"][0][1]["accuracy"] for o in outcomes.values()}) == 1
    cohorts = {
        a: [(c.round, c.client, c.num_examples, c.num_steps) for c in o["clients"]]
        for a, o in outcomes.items()
    }
    assert all(cohort == cohorts["full"] for cohort in cohorts.values())
    assert all(c.outcome is Outcome.ACCEPTED for o in outcomes.values() for c in o["clients"])
    sent = [sum(entry.num_bytes for entry in outcomes[a]["ledger"]) for a in ADAPTERS]
    assert sent == sorted(set(sent))


@pytest.mark.parametrize(
    "settings", [(), EVERYTHING, (*PACKED, "norms=local")], ids=["plain", "everything", "packed"]
)
def test_a_resumed_run_is_the_whole_run(tmp_path, settings):
    """Stopped after any round and resumed, a run ends bit for bit where one ends that was never stopped."""
    config = tiny(*settings)
    whole = outcome(run(config, tmp_path / "whole"))
    for last in range(config.rounds):
        with pytest.raises(Stopped):
            run(config, tmp_path / str(last), watcher=StopAfter(last))
        with RunStore.read(tmp_path / str(last) / "tiny") as store:
            assert store.last_round == last
        assert outcome(resume(tmp_path / str(last) / "tiny")) == whole


NEEDS = {
    "krum": ("algorithm.attackers=0",),
    "multi_krum": ("algorithm.attackers=0",),
    "bulyan": ("algorithm.attackers=0",),
    "chain": ('algorithm.of=["fedprox", "fedadam"]',),
    "fedbuff": ("algorithm.buffer=2",),
    "fedrep": ("train.epochs=2",),
    "trimmed_mean": ("algorithm.fraction=0.4",),
}
"""What algorithms need to run with three clients a round."""


@pytest.mark.parametrize("algorithm", names("algorithm"))
def test_every_algorithm_resumes(tmp_path, algorithm):
    """Whatever an algorithm keeps, at the server or at clients, a resumed run has it."""
    config = tiny(f"algorithm={algorithm}", "cohort=3", "data.limit=48", *NEEDS.get(algorithm, ()))
    whole = outcome(run(config, tmp_path / "whole"))
    with pytest.raises(Stopped):
        run(config, tmp_path / "stopped", watcher=StopAfter(2))
    assert outcome(resume(tmp_path / "stopped" / "tiny")) == whole


def test_a_run_goes_on_with_as_many_threads_as_it_began_with(tmp_path, monkeypatch):
    """Whatever the process was told, which gets back what it had; more threads than there are cores are not made."""
    seen = []

    class Noting(Watcher):
        def begin(self, experiment, last_round):
            seen.append(torch.get_num_threads())

    monkeypatch.setattr("fedadapt.training.processor.cores", lambda: 2)
    before = torch.get_num_threads()
    try:
        for began, now in ((2, 1), (1, 2), (3, 1)):
            torch.set_num_threads(began)
            with pytest.raises(Stopped):
                run(tiny("adapter=full", "rounds=2"), tmp_path / str(began), watcher=StopAfter(1))
            torch.set_num_threads(now)
            resume(tmp_path / str(began) / "tiny", watcher=Noting())
            assert torch.get_num_threads() == now
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 1, 1]


def test_resuming_a_finished_run_does_nothing(tmp_path):
    """A finished run is left as it is, times included."""
    path = run(tiny("rounds=1"), tmp_path)
    before = (path / FILE).read_bytes()
    assert resume(path) == path
    with RunStore.read(path) as store:
        assert store.last_round == 1
        store.verify()
    assert (path / FILE).read_bytes()[100:] == before[100:]


def test_a_run_asked_to_stop_ends_after_its_round(tmp_path):
    """The first Ctrl-C lets the round finish; the message says how to go on, and going on works."""
    config = tiny()
    before = signal.getsignal(signal.SIGINT)

    class Press(Watcher):
        """Presses Ctrl-C in the middle of round 2."""

        def clients(self, round, done, cohort):
            """Clients of the round have answered, nothing is committed yet."""
            if round == 2 and signal.getsignal(signal.SIGINT) is not before:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(
        Interrupted, match="stopped after round 2 of 3; go on with: fedadapt resume"
    ) as caught:
        run(config, tmp_path, watcher=Press())
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert outcome(resume(tmp_path / "tiny")) == outcome(run(config, tmp_path / "whole"))


@pytest.fixture
def weights(tmp_path):
    """A function that writes a weight file for the tiny backbone, from a seed."""

    def write(seed: int):
        experiment = build(tiny(f"seed={seed}"))
        path = tmp_path / "weights.safetensors"
        save_weights(experiment.backbone.module, path, {})
        return path

    return write


def test_other_weights_are_noticed(tmp_path, weights):
    """A run whose weight file was replaced is neither resumed nor exported."""
    config = tiny(f"backbone.weights={weights(0)}")
    with pytest.raises(Stopped):
        run(config, tmp_path / "runs", watcher=StopAfter(1))
    weights(1)
    with pytest.raises(RunError, match=r"began on backbone .* here it is"):
        resume(tmp_path / "runs" / "tiny")
    with pytest.raises(RunError, match=r"began on backbone .* here it is"):
        export(tmp_path / "runs" / "tiny", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    weights(0)
    assert outcome(resume(tmp_path / "runs" / "tiny")) == outcome(run(config, tmp_path / "whole"))


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    """The images behind a path may change; a run on others would be no continuation."""
    for seed, file in ((0, "first"), (1, "second")):
        drawn = np.random.default_rng(seed).integers(0, 256, (60, 12, 12, 3), dtype=np.uint8)
        labels = np.arange(60) % 3
        np.savez(tmp_path / f"{file}.npz", x_train=drawn, y_train=labels, x_test=drawn[:9], y_test=labels[:9])
    here = tmp_path / "data.npz"
    here.write_bytes((tmp_path / "first.npz").read_bytes())
    config = tiny(f'data.source={{name = "npz", path = "{here}"}}')
    with pytest.raises(Stopped):
        run(config, tmp_path / "runs", watcher=StopAfter(1))
    here.write_bytes((tmp_path / "second.npz").read_bytes())
    with pytest.raises(RunError, match=r"began on data .* here it is"):
        resume(tmp_path / "runs" / "tiny")


def test_rounds_are_measured_as_often_as_asked(tmp_path):
    """``evaluate.every`` skips measurements, never that of the last round; what is trained stays the same."""
    every, second = (outcome(run(tiny(f"evaluate.every={n}"), tmp_path / str(n))) for n in (1, 2))
    assert [round for round, metrics in second["rounds"] if "accuracy" in metrics] == [0, 2, 3]
    assert [round for round, metrics in every["rounds"] if "accuracy" in metrics] == [0, 1, 2, 3]
    assert second["state"] == every["state"]
    assert dict(second["rounds"])[2] == dict(every["rounds"])[2]


def test_clients_measure_themselves(tmp_path):
    """With samples held out each client has an accuracy of its own, and the round their mean and worst."""
    path = run(tiny(*EVERYTHING), tmp_path)
    with RunStore.read(path) as store:
        for summary in store.rounds()[1:]:
            own = [record.accuracy for record in store.clients(summary.round)]
            assert len(own) == 3
            assert summary.metrics["client_accuracy_mean"] == pytest.approx(sum(own) / 3)
            assert summary.metrics["client_accuracy_worst"] == min(own)
            assert all(0 <= accuracy <= 1 for accuracy in own)


def test_held_out_samples_are_not_trained_on():
    """What a client measures itself on is taken from what it trains on."""
    _, _, clients = build_data(tiny("data.local_test_fraction=0.3"))
    _, _, whole = build_data(tiny())
    for train, test, both in zip(clients.train, clients.test, whole.train, strict=True):
        assert torch.equal(torch.cat([train, test]).sort().values, both)
        assert len(test) == 9


def test_validation_takes_the_place_of_the_test_set(tmp_path):
    """With a validation share the run is measured on train images set aside, and says so."""
    path = run(tiny("rounds=1", "data.validation_fraction=0.25"), tmp_path)
    dataset, measured, _ = build_data(tiny("data.validation_fraction=0.25"))
    with RunStore.read(path) as store:
        data = store.manifest["data"]
        accuracy = store.rounds()[-1].metrics["accuracy"]
    assert (data["measured_on"], data["test"], data["train"]) == ("validation", len(measured), 120)
    assert len(measured) == round(0.25 * TRAIN)
    assert accuracy * len(measured) == pytest.approx(round(accuracy * len(measured)), abs=1e-3)
    full, test, _ = build_data(tiny())
    assert test is full.test
    held = {image.numpy().tobytes() for image in measured.images}
    assert not held & {image.numpy().tobytes() for image in dataset.train.images}


def test_a_limit_keeps_so_many_samples():
    """``data.limit`` is the number of samples that clients hold together, whatever else is set aside."""
    for setting in ("data.limit=97", "data.limit=10000"):
        dataset, _, clients = build_data(tiny(setting, "data.validation_fraction=0.5"))
        expected = 97 if setting.endswith("=97") else TRAIN - round(0.5 * TRAIN)
        assert len(dataset.train) == sum(map(len, clients.train)) == expected


def test_measuring_can_be_on_a_part(tmp_path):
    """``evaluate.limit`` measures on so many samples, classes in their shares, of the test or the validation split."""
    _, whole, _ = build_data(tiny())
    _, part, _ = build_data(tiny("evaluate.limit=30"))
    assert len(part) == 30
    shares = torch.bincount(whole.labels) * 30 / len(whole)
    assert (torch.bincount(part.labels) - shares).abs().max() < 1
    assert len(build_data(tiny("data.validation_fraction=0.25", "evaluate.limit=10"))[1]) == 10
    assert len(build_data(tiny("evaluate.limit=100000"))[1]) == len(whole)
    path = run(tiny("rounds=1", "evaluate.limit=10"), tmp_path)
    with RunStore.read(path) as store:
        hits = 10 * store.rounds()[-1].metrics["accuracy"]
        assert store.manifest["data"]["test"] == 10
        assert hits == pytest.approx(round(hits), abs=1e-5)


def test_everybody_failing_is_recorded_and_the_run_goes_on(tmp_path):
    """A rate at which all diverge gives empty rounds with each client's reason, and the model that was begun with."""
    path = run(tiny("train.lr=1e30", "rounds=2", "train.batch_size=4"), tmp_path)
    with RunStore.read(path) as store:
        assert store.last_round == 2
        assert {record.outcome for record in store.clients()} == {Outcome.FAILED}
        assert all("training diverged" in record.reason for record in store.clients())
        torch.testing.assert_close(
            store.state()["model"], build(tiny()).first_state()["model"], rtol=0, atol=0
        )


def test_replacing_a_run_takes_a_sound_configuration(tmp_path):
    """``overwrite`` removes the old run only once the new one can begin."""
    path = run(tiny("rounds=1"), tmp_path)
    before = outcome(path)
    with pytest.raises(RunError, match="already holds a run"):
        run(tiny("rounds=2"), tmp_path)
    with pytest.raises(DataError):
        run(tiny("data.num_clients=1000"), tmp_path, overwrite=True)
    assert outcome(path) == before
    with RunStore.open(path), pytest.raises(RunError, match="in use"):
        run(tiny("rounds=2"), tmp_path, overwrite=True)
    assert outcome(path) == before
    run(tiny("rounds=2"), tmp_path, overwrite=True)
    with RunStore.read(path) as store:
        assert store.last_round == 2


def test_a_damaged_run_can_be_replaced(tmp_path):
    """``overwrite`` also takes away what cannot be read any more."""
    path = run(tiny("rounds=1"), tmp_path)
    (path / FILE).write_bytes(b"no database")
    assert run(tiny("rounds=1"), tmp_path, overwrite=True) == path
    with RunStore.read(path) as store:
        store.verify()

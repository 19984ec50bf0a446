"""A run's summary against sums done by hand."""

from __future__ import annotations

import json
import shutil

import pytest

from fedadapt.errors import RunError
from fedadapt.report.gather import Condition, RunReader, labels, summarise
from fedadapt.runs.records import Direction, Outcome, RoundRecord
from fedadapt.runs.store import FILE, RunStore


def test_bytes_are_summed_over_clients_and_rounds(make_run):
    """Two rounds of 1000 bytes down and 600 up are 2000 and 1200, and so they grow by round."""
    run = summarise(make_run())
    assert (run.download_bytes, run.upload_bytes, run.total_bytes) == (2000, 1200, 3200)
    assert run.download_by_round == {0: 0, 1: 1000, 2: 2000}
    assert run.upload_by_round == {0: 0, 1: 600, 2: 1200}


def test_groups_sum_to_the_totals(make_run):
    """Bytes by group are those of the ledger, in each direction."""
    run = summarise(make_run())
    assert run.group_bytes == {
        (Direction.DOWNLOAD, "adapter"): 1600,
        (Direction.DOWNLOAD, "framing"): 400,
        (Direction.UPLOAD, "adapter"): 800,
        (Direction.UPLOAD, "framing"): 400,
    }


def test_accuracy_is_of_the_last_round_that_measured_it(make_run):
    """A last round without accuracy leaves that of the round before; the best is of any round."""
    run = summarise(make_run(accuracies=(0.1, 0.75, None, 0.5, None)))
    assert (run.accuracy, run.best_accuracy, run.rounds) == (0.5, 0.75, 4)
    assert run.accuracy_by_round == {0: 0.1, 1: 0.75, 3: 0.5}


def test_a_loss_that_is_no_number_is_left_out(make_run):
    """A run that diverged is reported, without the points that cannot be drawn."""
    path = make_run(accuracies=(0.1, float("nan")))
    assert summarise(path).accuracy_by_round == {0: 0.1}


def test_clients_and_times(make_run):
    """Client accuracies are the last measured, outcomes are counted, and times are summed."""
    run = summarise(make_run())
    assert run.client_accuracy == {0: 0.25, 1: 0.75}
    assert run.outcomes == {"accepted": 4}
    assert (run.wall_s, run.cpu_s) == (6.0, 9.0)


def test_json_has_the_promised_keys(make_run):
    """The object of `compare --json` has these keys and values, and JSON can write it."""
    assert json.loads(json.dumps(summarise(make_run()).as_json())) == {
        "run": "small",
        "rounds": 2,
        "accuracy": 0.75,
        "accuracy_of": "global model",
        "best_accuracy": 0.75,
        "upload_bytes": 1200,
        "download_bytes": 2000,
        "last_round_bytes": 1600,
        "backbone_bytes": 280000,
        "once_bytes": 280000,
        "clients_seen": 2,
        "total_with_backbone_bytes": 563200,
        "wall_s": 6.0,
        "cpu_s": 9.0,
        "seed": 7,
        "adapter": "parallel",
        "algorithm": "fedavg",
        "metrics": {"accuracy": 0.75, "loss": 0.25},
    }


def test_a_run_before_training_is_a_run(make_run):
    """Round 0 alone gives a summary of a run that is not finished and has moved nothing."""
    run = summarise(make_run(accuracies=(0.1,), planned=5))
    assert (run.rounds, run.planned_rounds, run.finished, run.total_bytes) == (0, 5, False, 0)


def test_a_manifest_may_say_little(tmp_path):
    """Missing manifest entries leave dashes, and the directory gives the name."""
    with RunStore.create(tmp_path / "bare", {}) as store:
        store.commit(RoundRecord(round=0, state={"model": {}}))
    run = summarise(tmp_path / "bare")
    assert (run.name, run.adapter, run.algorithm, run.seed) == ("bare", "–", "–", None)
    assert (run.accuracy, run.backbone_bytes, run.class_names, run.label_counts) == (None, 0, [], None)


def test_a_missing_run_is_refused(tmp_path):
    """A directory without a run ends in one line that names it."""
    with pytest.raises(RunError, match="nowhere"):
        summarise(tmp_path / "nowhere")


def test_a_damaged_run_is_refused(make_run):
    """A run file that is not one is refused, not reported as empty."""
    path = make_run()
    (path / FILE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(RunError, match=path.name):
        summarise(path)


def test_a_run_without_a_round_is_refused(tmp_path):
    """A run that stopped before its first commit has nothing to report, and the message says so."""
    RunStore.create(tmp_path / "early", {}).close()
    with pytest.raises(RunError, match=r"early has no committed round.*start it anew"):
        summarise(tmp_path / "early")


def test_names_are_told_apart(make_run):
    """Runs of one name get their directory's, and the same directory twice gets a number."""
    first, second = make_run("a", folder="x"), make_run("a", folder="y")
    runs = [summarise(path) for path in (first, second, second, make_run("b"))]
    assert labels(runs) == ["a (x)", "a (y)", "a (y) #2", "b"]


def test_a_reader_that_goes_on_knows_what_a_new_one_does(make_run, make_round):
    """After every commit, what was read bit by bit is what reading the whole run gives."""
    path = make_run(accuracies=(0.1,), planned=4)
    reader = RunReader(path)
    assert reader.look() == summarise(path)
    for rounds in ((1,), (2, 3), (), (4,)):
        with RunStore.open(path) as store:
            for number in rounds:
                store.commit(make_round(number, {"accuracy": number / 8}))
        assert reader.look() == summarise(path)
    assert summarise(path).answers == {number: {Outcome.ACCEPTED: 2} for number in (1, 2, 3, 4)}
    assert [record.client for record in summarise(path).last_clients] == [0, 1]


@pytest.mark.parametrize("accuracies", [(0.1, 0.2), (0.1, 0.2, 0.3, 0.4)])
def test_a_reader_notices_another_run(make_run, tmp_path, accuracies):
    """A run that was replaced, by a shorter or a longer one, is read from its beginning."""
    reader = RunReader(make_run(folder="run"))
    reader.look()
    shutil.rmtree(tmp_path / "run")
    path = make_run("other", accuracies, folder="run", scale=3)
    assert reader.look() == summarise(path)


def test_how_it_stands_with_a_run(make_run, make_round):
    """A run is running while it is held, stopped if it is not and lacks rounds, and finished when it has all."""
    path = make_run(accuracies=(0.1, 0.2), planned=2)
    assert summarise(path).condition is Condition.STOPPED
    with RunStore.open(path) as store:
        assert summarise(path).condition is Condition.RUNNING
        store.commit(make_round(2, {}))
        assert summarise(path).condition is Condition.FINISHED
    assert summarise(path).condition is Condition.FINISHED


def test_the_time_left_is_that_of_the_last_rounds(make_run):
    """Rounds of 2 s each leave 2 s for each of the six to come; before the first, nothing is known."""
    assert summarise(make_run(accuracies=(0.1, 0.2, 0.3), planned=8)).time_left_s == 12.0
    assert summarise(make_run(accuracies=(0.1,), planned=8)).time_left_s is None
    assert summarise(make_run()).time_left_s == 0.0


def test_a_reader_waits_for_the_first_round(tmp_path):
    """Before the first commit there is nothing to tell."""
    with RunStore.create(tmp_path / "early", {}):
        assert RunReader(tmp_path / "early").look() is None

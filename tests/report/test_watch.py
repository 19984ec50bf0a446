"""What is seen of a run while it goes on, against rounds made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from fedadapt.errors import RunError
from fedadapt.report.watch import follow, frame
from fedadapt.runs.log import say
from fedadapt.runs.records import ClientRecord, Outcome
from fedadapt.runs.store import RunStore


def drawn(sight, width=80):
    """The frame as lines of text, on a terminal of some width."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(frame(sight))
    return captured.get()


def once(path):
    """One look."""
    return next(follow([path]))[0]


def lost_round(make_round, number):
    """A round in which client 1 fails, with a reason that would clear the screen."""
    record = make_round(number, {"accuracy": 0.5, "loss": 0.25})
    failed = ClientRecord(number, 1, Outcome.FAILED, reason="no\nluck\x1b[2J")
    return replace(record, clients=(record.clients[0], failed))


def test_a_frame_tells_the_last_rounds(make_run):
    """Round, accuracy, loss, bytes each way, answers and seconds of each round stand in one line."""
    text = drawn(once(make_run(accuracies=(0.1, 0.5, 0.75), planned=10)))
    assert "round 2 of 10" in text
    (line,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["2"]]
    assert line == ["2", "75.0", "%", "0.2500", "1000", "B", "600", "B", "2", "of", "2", "2.0", "s"]
    assert "1.95 KiB down, 1.17 KiB up, 1.56 KiB a round" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_time_left_is_told_while_somebody_runs_it(make_run):
    """Eight rounds of 2 s are to come; when nobody holds the run it says how to go on instead."""
    path = make_run(accuracies=(0.1, 0.5, 0.75), planned=10)
    with RunStore.open(path):
        held = drawn(once(path))
    assert "running" in held
    assert "16.0 s left" in held
    stopped = drawn(once(path), width=300)
    assert f"stopped; no process holds it, go on with: fedadapt resume {path}" in stopped
    assert " s left" not in stopped
    federation = make_run(accuracies=(0.1,), planned=10, changes={"engine": "flower"})
    assert "go on with: fedadapt serve RECIPE" in drawn(once(federation), width=300)


def test_who_gave_nothing_is_named_with_the_reason(make_run, make_round):
    """A client that failed is named; what it said is one line and gives the terminal no commands."""
    path = make_run(accuracies=(0.1,), planned=3)
    with RunStore.open(path) as store:
        store.commit(lost_round(make_round, 1))
    text = drawn(once(path))
    assert "1 of 2" in text
    assert "client 1 failed: no luck\N{REPLACEMENT CHARACTER}[2J" in text
    assert "\x1b" not in text


def test_the_log_of_a_server_is_shown(make_run):
    """The last lines of a federation's log are part of the sight, and a new line is a change."""
    path = make_run(accuracies=(0.1,), planned=3)
    say(path, "client 0 is here with 40 samples")
    sights = follow([path], wait=lambda seconds: say(path, "client 0 is gone"))
    assert "is here with 40 samples" in drawn(next(sights)[0])
    assert "client 0 is gone" in drawn(next(sights)[0])


def test_following_ends_with_the_run(make_run, make_round):
    """Each round is seen once, looks at which nothing happened are not, and the last round is the end."""
    path = make_run(accuracies=(0.1,), planned=3)
    store = RunStore.open(path)
    rounds = iter((None, 1, None, 2, 3))

    def commit(seconds):
        number = next(rounds)
        if number is not None:
            store.commit(make_round(number, {"accuracy": 0.5}))

    with store:
        seen = [(sight.run.rounds, sight.condition) for (sight,) in follow([path], wait=commit)]
    assert seen == [(0, "running"), (1, "running"), (2, "running"), (3, "finished")]


def test_a_run_that_stops_is_followed_on(make_run, make_round):
    """That nobody holds a run any more is a change, and so is that somebody goes on with it."""
    path = make_run(accuracies=(0.1,), planned=1)
    stores = [RunStore.open(path)]
    steps = iter(
        (
            lambda: stores.pop().close(),
            lambda: stores.append(RunStore.open(path)),
            lambda: stores[0].commit(make_round(1, {})),
        )
    )
    seen = [sight.condition for (sight,) in follow([path], wait=lambda seconds: next(steps)())]
    stores.pop().close()
    assert seen == ["running", "stopped", "running", "finished"]


def test_before_the_first_round(tmp_path):
    """A run that has only begun has a frame and an object as well."""
    with RunStore.create(tmp_path / "early", {}):
        sight = once(tmp_path / "early")
    assert "early  running; no round is committed yet" in drawn(sight)
    assert (sight.as_json()["run"], sight.as_json()["rounds"]) == ("early", None)


def test_a_frame_of_a_run_that_measured_nothing(make_run):
    """Rounds without accuracy, and numbers that are none, leave dashes."""
    assert "–" in drawn(once(make_run(accuracies=(None, None))))
    assert "nan" not in drawn(once(make_run(accuracies=(0.5, float("nan")))))


def test_the_object_for_programs(make_run, make_round):
    """JSON has the last round with its bytes, seconds and clients."""
    path = make_run(accuracies=(0.1,), planned=3)
    with RunStore.open(path) as store:
        store.commit(lost_round(make_round, 1))
    told = json.loads(json.dumps(once(path).as_json(), allow_nan=False))
    assert (told["run"], told["condition"], told["rounds"], told["planned_rounds"]) == (
        "small",
        "stopped",
        1,
        3,
    )
    assert told["time_left_s"] == 4.0
    assert told["last_round"] == {
        "round": 1,
        "accuracy": 0.5,
        "loss": 0.25,
        "upload_bytes": 600,
        "download_bytes": 1000,
        "wall_s": 2.0,
        "clients": [
            {"client": 0, "outcome": "accepted", "reason": "", "accuracy": 0.25},
            {"client": 1, "outcome": "failed", "reason": "no\nluck\x1b[2J", "accuracy": None},
        ],
    }


def test_a_missing_run_ends_it(tmp_path):
    """A directory without a run ends in one line that names it."""
    with pytest.raises(RunError, match="nowhere"):
        once(tmp_path / "nowhere")

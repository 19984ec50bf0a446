"""Real processes that are interrupted, run out of disk, or are killed lose no committed round."""

from __future__ import annotations

import resource
import signal

import pytest
from tiny import EVERYTHING, StopAfter, Stopped, kill_and_resume, outcome, start, tiny

from fedadapt.experiment import resume, run
from fedadapt.runs.store import RunStore


def test_ctrl_c_finishes_the_round(tmp_path, recipe):
    """On SIGINT a run ends after its round with code 130, says how to go on, and goes on from there."""
    # So many rounds that the run cannot be over before the signal is sent.
    settings = (*EVERYTHING, "rounds=20000", "evaluate.every=1000")
    process = start("run", recipe, "--runs", tmp_path / "runs", *(f"--set={setting}" for setting in settings))
    for line in process.stdout:
        if line.startswith("round"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate()
    path = tmp_path / "runs" / "tiny"
    assert process.returncode == 130, errors
    with RunStore.read(path) as store:
        last = store.last_round
        store.verify()
    assert errors == f"fedadapt: stopped after round {last} of 20000; go on with: fedadapt resume {path}\n"
    with pytest.raises(Stopped):
        resume(path, watcher=StopAfter(last + 2))
    with pytest.raises(Stopped):
        run(tiny(*settings), tmp_path / "whole", watcher=StopAfter(last + 2))
    assert outcome(path) == outcome(tmp_path / "whole" / "tiny")


def test_a_full_disk_keeps_committed_rounds(tmp_path, recipe):
    """When the system refuses to write, a run ends with code 8 and one line; with room it goes on to the same end."""

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))

    settings = (*EVERYTHING, "rounds=6")
    process = start(
        "run",
        recipe,
        "--runs",
        tmp_path / "runs",
        *(f"--set={setting}" for setting in settings),
        preexec_fn=little_room,
    )
    _, errors = process.communicate()
    path = tmp_path / "runs" / "tiny"
    assert process.returncode == 8, errors
    assert errors.count("\n") == 1
    assert "file size limit" in errors
    assert "fedadapt resume" in errors
    with RunStore.read(path) as store:
        last = store.last_round
        store.verify()
    assert f"rounds up to {last} are safe" in errors
    assert 0 <= last < 6
    assert outcome(resume(path)) == outcome(run(tiny(*settings), tmp_path / "whole"))


def test_a_killed_run_goes_on(tmp_path):
    """Killed at two instants and resumed, a run ends where one ends that was never stopped."""
    kill_and_resume(tmp_path, kills=2, seed=1)

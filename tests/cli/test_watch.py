"""``watch`` and ``report --live`` beside real processes that write, end and are killed."""

from __future__ import annotations

import json
import signal
import urllib.request
from functools import partial

import pytest
from tiny import start

from fedadapt.engines.flower.processes import free_port
from fedadapt.runs.records import RoundRecord
from fedadapt.runs.store import RunStore


@pytest.fixture
def written(tmp_path):
    """A run of two rounds that this process holds, before the first, and what commits one."""
    with RunStore.create(tmp_path / "run", {"config": {"name": "by hand", "rounds": 2}}) as store:

        def commit(number):
            store.commit(RoundRecord(number, {"model": {}}, {"accuracy": 0.5}, wall_s=1.0))

        commit(0)
        yield tmp_path / "run", commit


def begun(process):
    """Reads what a run prints until its first round is on disk."""
    for line in process.stdout:
        if line.startswith("round"):
            return
    raise AssertionError(process.stderr.read())


def test_a_run_that_is_killed_is_seen(tmp_path, recipe, fedadapt):
    """While a process runs it, a run is running; after SIGKILL, with the log left beside the file, it has stopped."""
    process = start("run", recipe, "--runs", tmp_path, "--set=rounds=20000", "--set=evaluate.every=1000")
    begun(process)
    running = json.loads(fedadapt("watch", tmp_path / "tiny", "--once", "--json").out)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = fedadapt("watch", tmp_path / "tiny", "--once")
    assert (running["condition"], running["planned_rounds"]) == ("running", 20000)
    assert running["rounds"] >= 1
    assert killed.code == 0
    assert "stopped; no process holds it, go on with: fedadapt resume" in killed.out


def test_watching_to_the_end(written):
    """``watch --json`` gives a line a change while another process writes, and ends with the run; scrapes are answered."""
    path, commit = written
    port = free_port()
    watcher = start("watch", path, "--json", "--every=0.1", f"--metrics-port={port}")
    lines = [json.loads(watcher.stdout.readline())]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        scraped = answer.read().decode()
    commit(1)
    lines.append(json.loads(watcher.stdout.readline()))
    commit(2)
    out, errors = watcher.communicate()
    assert (watcher.returncode, errors) == (0, "")
    lines += [json.loads(line) for line in out.splitlines()]
    assert 'fedadapt_planned_rounds{run="by hand"} 2.0' in scraped
    assert [(line["rounds"], line["condition"]) for line in lines] == [
        (0, "running"),
        (1, "running"),
        (2, "finished"),
    ]


def test_a_live_page_is_written_to_the_end(written):
    """``report --live`` follows a run that another process writes, and leaves a page that waits for nothing."""
    path, commit = written
    commit(1)
    reporter = start("report", path, "--live")
    assert "it follows until the runs are complete" in reporter.stdout.readline()
    assert 'data-refresh="5"' in (path / "report.html").read_text(encoding="utf-8")
    commit(2)
    _, errors = reporter.communicate()
    page = (path / "report.html").read_text(encoding="utf-8")
    assert (reporter.returncode, errors) == (0, "")
    assert "rounds, finished" in page
    assert "data-refresh=" not in page


def test_ctrl_c_ends_watching_quietly(written):
    """Whoever stops watching gets no error, and the page that was live waits no more."""
    path, _ = written
    for command in (["watch"], ["report", "--live"]):
        # A shell that starts the tests in the background has them ignore the signal.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        watcher = start(*command, path, preexec_fn=heed)
        assert watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate()
        assert (watcher.returncode, errors) == (0, "")
    assert "data-refresh=" not in (path / "report.html").read_text(encoding="utf-8")


def test_a_finished_run_is_one_frame(finished, fedadapt):
    """Watching a run that is complete shows it once and ends."""
    ended = fedadapt("watch", finished)
    assert (ended.code, ended.err) == (0, "")
    assert "round 1 of 1" in ended.out
    assert fedadapt("watch", finished / "none").code == 8

"""Processes that are kept: known to be alive, told apart when they are of no use, and started again."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from fedadapt.engines.flower.node import _Kept
from fedadapt.engines.flower.processes import Child, _has_child


def wait_until(true, patience_s=60.0):
    """Waits until something is so."""
    until = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Makes children of shell lines; they end with the test."""
    monkeypatch.setattr(Child, "LOOK_S", 0.0)
    made = []

    def make(line, needs=b"", farewells=()):
        made.append(Child(["sh", "-c", line], tmp_path, tmp_path / "log", needs, farewells))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_a_child_without_what_it_needs_is_not_alive(child):
    """What it starts, in a session of its own, may die without its notice; before that it is only young."""
    one = child("sleep 0.3; setsid sleep 1234 & exec sleep 4321", b"sleep\x001234")
    one.start()
    assert one.alive

    def started():
        # `setsid` has the words in its command line too, before it becomes what it starts.
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and _is(folder, b"sleep\x001234") and _parent(folder) == one.pid
        ]

    wait_until(lambda: one.alive and started())
    assert one.alive
    (number,) = started()
    os.kill(number, signal.SIGKILL)
    wait_until(lambda: not one.alive)
    one.start()
    assert one.alive


def test_what_it_needs_may_die_before_anybody_has_looked(child, tmp_path):
    """Nobody asked how it ended, so its name is still known."""
    (tmp_path / "flower-superexec").symlink_to(shutil.which("sleep"))
    one = child(
        f"{tmp_path}/flower-superexec 1234 & sleep 0.5; kill -9 $!; exec sleep 4321", b"flower-superexec"
    )
    one.start()
    # Gone, and unasked: looking for it by other means than `alive`.
    wait_until(lambda: _has_child(one.pid, b"flower-superexec") == (False, True))
    assert not one.alive


def test_who_took_its_leave_is_not_alive(child):
    """Though its process goes on; what an earlier one said is not heard again."""
    one = child(
        "echo hello; sleep 0.5; printf 'WARNING: Giving '; sleep 0.5; echo up; exec sleep 4321",
        farewells=(b"Good bye", b"Giving up"),
    )
    one.start()
    assert one.alive
    wait_until(lambda: not one.alive)
    assert one.last_words() == "WARNING: Giving up"
    one.start()
    assert one.alive


def _parent(folder):
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def _is(folder, command):
    try:
        return (folder / "cmdline").read_bytes().startswith(command)
    except OSError:
        return False


def test_its_last_words_are_its_errors(child):
    """What follows an error in the log is no reason; without one the last line has to do."""
    one = child(
        "printf '\\033[92mINFO\\033[0m: begun\\nERROR : no key\\nfor this\\ndoor\\nINFO: bye\\n'; exit 1"
    )
    one.start()
    wait_until(lambda: not one.alive)
    assert one.last_words() == "ERROR : no key for this door"


def test_a_child_that_ends_at_once_is_started_ever_more_seldom(child):
    """Each end is one line with its reason and the pause that follows."""
    said = []
    kept = _Kept("worker", child("echo no data; exit 3"), said.append)
    kept.start()
    wait_until(lambda: kept.look() or len(said) == 2, 120)
    assert said == [
        "worker ended (no data); starting it again in 2 s",
        "worker ended (no data); starting it again in 4 s",
    ]

"""One writer has a run directory at a time, and a lock never outlives its process."""

from __future__ import annotations

import fcntl
import os

import pytest

from fedadapt.errors import RunError
from fedadapt.runs import lock
from fedadapt.runs.lock import LOCK, is_held
from fedadapt.runs.store import RunStore

HOLD = """
import sys
from pathlib import Path
from fedadapt.runs.store import RunStore

with RunStore.create(Path(sys.argv[1]), {}) as store:
    store.commit(make_round(0))
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["close", "kill"])
def test_another_process_is_refused_until_the_writer_ends(tmp_path, start, end):
    """The refusal names the process; readers may enter; the lock is free once the writer closed or died."""
    writer = start(HOLD, tmp_path / "run")
    assert writer.stdout.readline() == "ready\n"
    for take in (RunStore.open, lambda path: RunStore.create(path, {})):
        with pytest.raises(RunError, match=f"in use by process {writer.pid};"):
            take(tmp_path / "run")
    with RunStore.read(tmp_path / "run") as reader:
        assert reader.last_round == 0
    assert is_held(tmp_path / "run")
    if end == "kill":
        writer.kill()
    writer.communicate()
    assert not is_held(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        assert store.last_round == 0


def test_a_second_store_of_the_same_process_is_refused(tmp_path):
    """The lock belongs to the store, not to the process, and is free again after close."""
    with RunStore.create(tmp_path / "run", {}), pytest.raises(RunError, match=f"by process {os.getpid()};"):
        RunStore.open(tmp_path / "run")
    RunStore.open(tmp_path / "run").close()


def test_the_lock_is_free_after_an_error(tmp_path, make_round):
    """A failed commit, a failed open and an exception inside the block all give the lock back."""
    with pytest.raises(RunError), RunStore.create(tmp_path / "run", {}) as store:
        store.commit(make_round(5))
    content = (tmp_path / "run" / "run.sqlite").read_bytes()
    (tmp_path / "run" / "run.sqlite").write_bytes(b"damaged" + content[7:])
    with pytest.raises(RunError, match="not a database"):
        RunStore.open(tmp_path / "run")
    (tmp_path / "run" / "run.sqlite").write_bytes(content)
    RunStore.open(tmp_path / "run").close()


def test_nobody_holds_what_is_not_there(tmp_path):
    """A directory without a lock, and none at all, are held by nobody, and looking makes nothing."""
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_look_at_the_lock_keeps_no_writer_from_it(tmp_path, monkeypatch):
    """A writer that comes while somebody looks waits until he has looked, and then has the lock."""
    RunStore.create(tmp_path / "run", {}).close()
    looking = os.open(tmp_path / "run" / LOCK, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
    with RunStore.open(tmp_path / "run"):
        assert is_held(tmp_path / "run")
    os.close(looking)

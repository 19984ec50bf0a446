"""A full disk or a killed process costs no committed round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedadapt.errors import RunError
from fedadapt.params import to_bytes
from fedadapt.runs.store import RunStore


def test_a_full_database_names_the_disk(tmp_path, make_round):
    """What SQLite reports as full is reported as a full disk, and the same store can go on with more room."""
    with RunStore.create(tmp_path / "run", {}) as store:
        store.commit(make_round(0))
        store._connection.execute("PRAGMA max_page_count = 40")
        large = replace(make_round(1), state={"model": {"w": torch.zeros(100_000)}})
        with pytest.raises(RunError, match=r"disk is full.*nothing of round 1 .* up to 0 are safe"):
            store.commit(large)
        store.verify()
        assert to_bytes(store.state()) == to_bytes(make_round(0).state)
        store._connection.execute("PRAGMA max_page_count = 4000")
        store.commit(large)
        assert to_bytes(store.state()) == to_bytes(large.state)


FULL = """
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
from fedadapt.errors import RunError
from fedadapt.runs.store import RunStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
store = RunStore.create(path, {})
store.commit(make_round(0))
store.commit(make_round(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
large = replace(make_round(2), state={"model": {"w": torch.zeros(100_000)}})
for _ in range(2):
    try:
        store.commit(large)
    except RunError as error:
        print(error)
    store.verify()
    assert store.last_round == 1
    assert torch.equal(store.state()["model"]["w"], torch.full((64,), 1.0))
if sys.argv[2] == "more room":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.commit(large)
store.close()
"""


@pytest.mark.parametrize("then", ["more room", "close"])
def test_a_full_disk_loses_no_committed_round(tmp_path, start, make_round, then):
    """When the system refuses to write more, committed rounds stay, and the next commit with room succeeds."""
    process = start(FULL, tmp_path / "run", then)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = output.splitlines()
    assert len(lines) == 2
    assert all("file size limit" in line and "rounds up to 1 are safe" in line for line in lines)
    with RunStore.open(tmp_path / "run") as store:
        last = 2 if then == "more room" else 1
        assert store.last_round == last
        store.commit(make_round(last + 1))
        assert to_bytes(store.state()) == to_bytes(make_round(last + 1).state)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from fedadapt.runs.store import RunStore

path, draw, acknowledged = Path(sys.argv[1]), random.Random(7), 0
RunStore.create(path, {}).close()
for attempt in range(12):
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        store = RunStore.open(path)
        for number in range(acknowledged, 10**9):
            store.commit(make_round(number))
            os.write(send, b".")
    os.close(send)
    for _ in range(draw.randrange(1, 8)):
        assert os.read(receive, 1) == b"."
        acknowledged += 1
    time.sleep(draw.random() * 0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while rest := os.read(receive, 4096):
        acknowledged += len(rest)
    os.close(receive)
    for view in (RunStore.read, RunStore.open):
        with view(path) as store:
            store.verify()
            last = store.last_round
            assert last in (acknowledged - 1, acknowledged), (last, acknowledged)
            assert [summary.metrics["accuracy"] for summary in store.rounds()] == [n / 1024 for n in range(last + 1)]
            assert [record.round for record in store.clients()] == list(range(last + 1))
            assert torch.equal(store.state()["model"]["w"], torch.full((64,), float(last)))
            for number in range(max(0, last - 2), last + 1):
                assert torch.equal(store.memory(number % 3)["model"]["w"], torch.full((64,), float(number)))
    acknowledged = last + 1
print(acknowledged)
"""


def test_a_killed_writer_leaves_whole_rounds_and_all_that_it_acknowledged(tmp_path, start):
    """However often a process is killed while it commits, a prefix is there with every commit that returned."""
    process = start(KILLED, tmp_path / "run")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    with RunStore.open(tmp_path / "run") as store:
        assert store.last_round == int(output) - 1

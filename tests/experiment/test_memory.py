"""What clients keep counts once their update does, however long that is on its way."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny

from fedadapt.experiment import run
from fedadapt.experiment.memory import UNSETTLED, StoredMemory
from fedadapt.runs.records import ClientRecord, Outcome, RoundRecord
from fedadapt.runs.store import RunStore


def kept(value):
    """Memory of one number."""
    return {"residual": {"w": torch.tensor([value])}}


def seen(path):
    """What a run holds of the memory of clients 0 to 2."""
    with RunStore.read(path) as store:
        memory = StoredMemory(store)
        return {c: {s: float(p["w"]) for s, p in memory[c].items()} for c in range(3) if c in memory}


def play(path, round, writes, heard):
    """One round in a process of its own: these wrote something, of those was heard."""
    with RunStore.open(path) as store:
        memory = StoredMemory(store)
        for client, value in writes.items():
            memory[client] = kept(value)
        records = tuple(ClientRecord(round, client, outcome) for client, outcome in heard.items())
        memory.settle(records)
        store.commit(RoundRecord(round, {"model": {}}, clients=records, memory=memory.written()))


@pytest.mark.parametrize("late", [Outcome.ACCEPTED, Outcome.REFUSED])
def test_memory_of_a_late_update_counts_with_it(tmp_path, late):
    """It lies beside what was kept before, over any number of rounds and processes, until the update is judged."""
    path = tmp_path / "run"
    RunStore.create(path, {}).close()
    play(path, 0, {}, {})
    play(path, 1, {0: 1.0, 1: 2.0}, {0: Outcome.ACCEPTED, 1: Outcome.REFUSED})
    assert seen(path) == {0: {"residual": 1.0}}
    play(path, 2, {0: 3.0, 1: 4.0, 2: 5.0}, {2: Outcome.ACCEPTED})
    assert seen(path)[0]["residual"] == 1.0
    play(path, 3, {2: 6.0}, {2: Outcome.ACCEPTED})
    play(path, 4, {}, {0: late, 1: late})
    settled = (
        {0: {"residual": 3.0}, 1: {"residual": 4.0}} if late is Outcome.ACCEPTED else {0: {"residual": 1.0}}
    )
    assert seen(path) == {**settled, 2: {"residual": 6.0}}


def test_refused_updates_of_a_buffer_leave_no_memory(tmp_path):
    """All updates are beyond the bound, most of them late: what packing them lost is nobody's to make up for."""
    path = run(
        tiny(
            "algorithm=fedbuff", "algorithm.buffer=1", "rounds=3", "codec=int4", "codec.error_feedback=true",
            "codec.delta=false", "codec.download=float32", "federation.norm_bound=1e-9",
        ),
        tmp_path,
    )  # fmt: skip
    with RunStore.read(path) as store:
        records, memory = store.clients(), StoredMemory(store)
        assert {record.outcome for record in records} == {Outcome.REFUSED}
        left = [stream for record in records if record.client in memory for stream in memory[record.client]]
        assert all(stream.startswith(UNSETTLED) for stream in left)

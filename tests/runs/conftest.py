"""What the tests of runs share: rounds whose content follows from their number, and real other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedadapt
from fedadapt.runs.records import FRAMING, ClientRecord, Direction, LedgerEntry, Outcome, RoundRecord

ROUND = """
import torch
from fedadapt.runs.records import ClientRecord, Direction, LedgerEntry, Outcome, RoundRecord

def make_round(number):
    values = {"model": {"w": torch.full((64,), float(number))}}
    client = ClientRecord(number, number % 3, Outcome.ACCEPTED, 10, 2, 0.5)
    entry = LedgerEntry(number, number % 3, Direction.UPLOAD, "adapter", 256)
    return RoundRecord(number, values, {"accuracy": number / 1024}, (client,), (entry,), {number % 3: values})
"""
"""Source of a smaller `make_round` for other processes."""


def make_round(number: int) -> RoundRecord:
    """A round with two clients, one of which fails, whose values all follow from its number."""
    model = {"w": torch.arange(6.0).reshape(2, 3) + number, "steps": torch.tensor(number)}
    return RoundRecord(
        round=number,
        state={"model": model, "momentum": {}},
        metrics={"accuracy": number / 8, "loss": 1 / (number + 3)},
        clients=(
            ClientRecord(number, 4, Outcome.ACCEPTED, 120, 15, 0.25 * number, 0.5),
            ClientRecord(number, 9, Outcome.FAILED, reason=f"löss is nan in round {number}"),
        ),
        ledger=(
            LedgerEntry(number, 9, Direction.DOWNLOAD, "adapter", 1000),
            LedgerEntry(number, 4, Direction.DOWNLOAD, "adapter", 1000),
            LedgerEntry(number, 4, Direction.UPLOAD, "adapter", 500 + number),
            LedgerEntry(number, 4, Direction.UPLOAD, FRAMING, 64),
        ),
        memory={4: {"norms": {"weight": torch.full((3,), float(number))}}, 10 + number: {"seen": {}}},
        wall_s=1.5,
        cpu_s=2.25,
    )


@pytest.fixture(name="make_round", scope="session")
def _make_round():
    return make_round


@pytest.fixture
def start():
    """Starts Python processes that run ``make_round`` and a source text; ends those that are left."""
    started: list[subprocess.Popen[str]] = []
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(fedadapt.__file__).parents[1]),
    }

    def begin(source: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", ROUND + source, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()

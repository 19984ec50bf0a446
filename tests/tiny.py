"""Runs that take a second: what the tests of experiments, of the command line and of kills share."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import fedadapt
from fedadapt.experiment import RunConfig, resume, run
from fedadapt.experiment.config import apply_setting, make_config
from fedadapt.experiment.run import Watcher
from fedadapt.params import to_bytes
from fedadapt.runs.store import FILE, RunStore

TOML = """
rounds = 3

[backbone]
name = "resnet20"
width = 0.25

[data]
num_clients = 4
limit = 120
source = { name = "digits", size = 12 }
augment = { pad = 1, flip = false }

[train]
lr = 0.01
"""

DOCUMENT: dict[str, Any] = {
    "name": "tiny",
    "rounds": 3,
    "backbone": {"name": "resnet20", "width": 0.25},
    "data": {
        "num_clients": 4,
        "limit": 120,
        "source": {"name": "digits", "size": 12},
        "augment": {"pad": 1, "flip": False},
    },
    "train": {"lr": 0.01},
}

EVERYTHING = ("norms=local", "data.local_test_fraction=0.3", "train.schedule=cosine", "cohort=3")
"""Settings under which a round depends on all that a run has to remember."""


def tiny(*settings: str) -> RunConfig:
    """The tiny run with settings such as ``train.lr=0.1`` applied."""
    document = deepcopy(DOCUMENT)
    for setting in settings:
        apply_setting(document, setting, RunConfig)
    return make_config(document)


def outcome(path: Path) -> dict[str, Any]:
    """All that a run has on disk and that must not depend on how it came about; times are left out."""
    with RunStore.read(path) as store:
        config = store.manifest["config"]
        memory = [store.memory(client) for client in range(config["data"]["num_clients"])]
        return {
            "config": config,
            "rounds": [(summary.round, summary.metrics) for summary in store.rounds()],
            "state": to_bytes(store.state()),
            "clients": store.clients(),
            "ledger": store.ledger(),
            "memory": [None if kept is None else to_bytes(kept) for kept in memory],
        }


class Stopped(Exception):
    """Raised by `StopAfter`."""


class StopAfter(Watcher):
    """Ends a run the hard way once a round is on disk."""

    def __init__(self, round: int) -> None:
        self.round = round

    def begin(self, experiment, last_round):
        """Round 0 is committed by now."""
        if self.round == 0:
            raise Stopped

    def committed(self, record):
        """Stops if this was the round."""
        if record.round == self.round:
            raise Stopped


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A real ``fedadapt`` process."""
    source = Path(fedadapt.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", "from fedadapt.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
        **options,
    )


def kill_and_resume(folder: Path, kills: int, seed: int) -> list[int | None]:
    """Kills runs at random instants, goes on with each, and compares it with a run that nothing happened to.

    Returns:
        How each killed process ended: ``-SIGKILL``, or 0 if it was faster.
    """
    settings = (*EVERYTHING, "rounds=10")
    whole = run(tiny(*settings), folder / "whole")
    expected = outcome(whole)
    with RunStore.read(whole) as store:
        lasts = sum(summary.wall_s for summary in store.rounds())
    recipe = folder / "tiny.toml"
    recipe.write_text(TOML, encoding="utf-8")
    draw, ended = random.Random(seed), []
    for number in range(kills):
        process = start(
            "run", recipe, "--runs", folder / str(number), *(f"--set={setting}" for setting in settings)
        )
        path = folder / str(number) / "tiny"
        while process.poll() is None and not (path / FILE).exists():
            time.sleep(0.005)
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, lasts))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ended.append(process.returncode)
        assert outcome(resume(path)) == expected
    return ended

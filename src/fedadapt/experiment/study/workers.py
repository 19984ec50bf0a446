"""Processes that run the cells of a study: each runs one at a time, and one that dies is a result like any other."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import torch

from fedadapt.errors import (
    AttachError,
    ConfigError,
    FedadaptError,
    Interrupted,
    NoDevice,
    PartitionError,
    RoundFailed,
    RunError,
)
from fedadapt.experiment.build import Experiment
from fedadapt.experiment.config import RunConfig, make_config
from fedadapt.experiment.run import Watcher, resume, run
from fedadapt.experiment.study.grid import Cell, digest
from fedadapt.experiment.study.machine import Need, Room, peak_bytes
from fedadapt.runs.records import ClientRecord, Outcome, RoundRecord, absences
from fedadapt.runs.results import Status
from fedadapt.runs.store import FILE, RunStore

STOP = b"stop"
STOPPED = "stopped"
"""How a cell ended that was asked to stop: neither well nor badly."""

SECONDS_TO_END = 30.0


@dataclass(frozen=True)
class Advanced:
    """A cell has come so far.

    Args:
        cell: which.
        rounds: how much of it is done, in rounds.
        accuracy: as last measured in this process.
    """

    cell: Cell
    rounds: float
    accuracy: float | None


@dataclass(frozen=True)
class Ended:
    """A cell has ended.

    Args:
        cell: which.
        status: a `Status`, or `STOPPED`.
        reason: why it is not DONE.
    """

    cell: Cell
    status: str
    reason: str


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, folder: Path, threads: int, gpu: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.gpu = gpu
        self.cell: Cell | None = None
        self.process: BaseProcess = context.Process(
            target=work, args=(theirs, folder, threads, gpu), daemon=True
        )
        self.process.start()
        # Or the pipe would not end when the process does.
        theirs.close()

    def begin(self, cell: Cell) -> None:
        self.cell = cell
        self.pipe.send_bytes(cell.config.model_dump_json().encode())

    def end(self) -> None:
        """Lets a process that waits end by itself, which tidies up after it; any other is killed."""
        if self.cell is None:
            with suppress(OSError):
                self.pipe.send_bytes(STOP)
            self.process.join(SECONDS_TO_END)
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Workers:
    """The processes of a study; closed at the end of a ``with``.

    Args:
        folder: where run directories are.
        threads: of each process.
        room: says whether one more fits.
    """

    def __init__(self, folder: Path, threads: int, room: Room) -> None:
        self._folder = folder
        self._threads = threads
        self._room = room
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.end()

    @property
    def running(self) -> list[Cell]:
        """The cells that are being run."""
        return [worker.cell for worker in self._workers if worker.cell is not None]

    def begin(self, cell: Cell) -> bool:
        """Gives a cell to a process that waits, or to a new one; returns False if there is no room for it now."""
        for worker in [w for w in self._workers if w.cell is None and not w.process.is_alive()]:
            self._workers.remove(worker)
        idle = [worker for worker in self._workers if worker.cell is None]
        if not idle:
            gpu = self._room.fits([(worker.process.pid or 0, worker.gpu) for worker in self._workers])
            if gpu is None:
                return False
            idle = [_Worker(self._folder, self._threads, gpu)]
            self._workers += idle
        idle[0].begin(cell)
        return True

    def events(self, timeout_s: float) -> Iterator[Advanced | Ended]:
        """What has happened; waits for something, but not for longer than `timeout_s`."""
        pipes = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(pipes), timeout_s):
            worker = pipes[pipe]  # type: ignore[index]
            try:
                told = json.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError, ValueError):
                self._workers.remove(worker)
                worker.process.join()
                if worker.cell is not None:
                    yield Ended(worker.cell, Status.BROKEN, _death(worker.process.exitcode))
                continue
            cell = worker.cell
            if cell is None:
                continue
            self._room.measured(Need(*told["need"]))
            if "status" in told:
                worker.cell = None
                yield Ended(cell, told["status"], told["reason"])
            else:
                yield Advanced(cell, told["rounds"], told["accuracy"])

    def stop(self) -> None:
        """Asks every process to stop after the round that it is in."""
        for worker in self._workers:
            with suppress(OSError):
                worker.pipe.send_bytes(STOP)


def work(pipe: Connection, folder: Path, threads: int, gpu: int) -> None:
    """What a process does: it runs the cells that come through the pipe, until it is told to stop or the pipe ends.

    Args:
        pipe: to the process that started this one; configurations or `STOP` come in, what happens goes out, as JSON.
        folder: where run directories are.
        threads: to compute with.
        gpu: which to use where cells run on one.
    """
    # Ctrl-C reaches all processes of a terminal; the first one says what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpu)
    torch.set_num_threads(threads)
    while True:
        try:
            order = pipe.recv_bytes()
        except (EOFError, ConnectionError):
            return
        if order == STOP:
            return
        status, reason = run_cell(make_config(json.loads(order)), folder, _Teller(pipe))
        _tell(pipe, status=status, reason=reason)


def run_cell(config: RunConfig, folder: Path, watcher: Watcher) -> tuple[str, str]:
    """Runs a cell to its end, or goes on with it.

    Args:
        config: its name is its digest.
        folder: where its run directory is, or will be.
        watcher: told of progress.

    Returns:
        How it ended, a `Status` or `STOPPED`, and why if it is not done.
    """
    path = folder / config.name
    try:
        if (path / FILE).exists():
            with RunStore.read(path) as store:
                began = store.manifest["config"]
                first = store.clients(1)
            if digest(make_config(began)) != config.name:
                raise RunError(f"run {path} was begun when other settings were the default; add --overwrite")
            _spare(first)
            resume(path, watcher=_Sparing(watcher))
        else:
            run(config, folder, watcher=_Sparing(watcher))
    except Interrupted:
        return STOPPED, ""
    except NoDevice as error:
        return Status.BROKEN, str(error)
    except (ConfigError, PartitionError, AttachError, RoundFailed) as error:
        return Status.FAILED, str(error)
    except (FedadaptError, OSError) as error:
        return Status.BROKEN, str(error)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in one cell, the others go on
        return Status.BROKEN, " ".join(f"{type(error).__name__}: {error}".split())
    return Status.DONE, ""


class _Sparing(Watcher):
    """Ends a run whose first round all clients failed in: a run by itself goes on, a study has others to do."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def begin(self, experiment: Experiment, last_round: int) -> None:
        self._watcher.begin(experiment, last_round)

    def clients(self, round: int, cohort: int, done: int) -> None:
        self._watcher.clients(round, cohort, done)

    def committed(self, record: RoundRecord) -> None:
        self._watcher.committed(record)
        if record.round == 1:
            _spare(record.clients)


def _spare(first: Sequence[ClientRecord]) -> None:
    """Ends a run that all clients failed in, in its first round, now or when it was last gone on with."""
    if first and all(client.outcome in (Outcome.FAILED, Outcome.REFUSED) for client in first):
        raise RoundFailed(f"no client could do its work in the first round: {absences(first)}")


class _Teller(Watcher):
    """Tells the study how far a cell is, and stops it when it is asked to."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._rounds = self._planned = 0
        self._accuracy: float | None = None
        self._told_at = 0.0

    def begin(self, experiment: Experiment, last_round: int) -> None:
        self._rounds, self._planned = last_round, experiment.config.rounds
        self._tell(0)
        self._heed()

    def clients(self, round: int, cohort: int, done: int) -> None:
        del round
        if time.monotonic() - self._told_at > 1:
            self._tell(min(1, done / cohort))

    def committed(self, record: RoundRecord) -> None:
        self._rounds = record.round
        self._accuracy = record.metrics.get("accuracy", self._accuracy)
        self._tell(0)
        self._heed()

    def _tell(self, share: float) -> None:
        self._told_at = time.monotonic()
        _tell(self._pipe, rounds=self._rounds + share, accuracy=self._accuracy)

    def _heed(self) -> None:
        # Whatever comes while a cell is run can only be the order to stop; it is left for `work` to read.
        if self._rounds < self._planned and self._pipe.poll():
            raise Interrupted(f"stopped after round {self._rounds}")


def _tell(pipe: Connection, **what: Any) -> None:
    reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else 0
    pipe.send_bytes(json.dumps({"need": [peak_bytes(), reserved], **what}).encode())


def _end_with_parent() -> None:
    """Ends this process with the one that started it, however that one ends; a round is whole or was not."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _visible(gpu: int) -> str:
    """The GPU of that number among those that may be seen."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return seen[gpu] if gpu < len(seen) and seen[gpu] else str(gpu)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory; try fewer --jobs" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}"

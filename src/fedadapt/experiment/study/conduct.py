"""Does a study: what has no result yet is run, side by side, and what ends is written down."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedadapt.errors import ConfigError, Interrupted, NoDevice, RunError
from fedadapt.experiment.config import make_config
from fedadapt.experiment.run import interruptible
from fedadapt.experiment.study.file import Pattern, Study, check_pattern, matches
from fedadapt.experiment.study.grid import Cell, Place, Plan, Stage, check, digest, make_plan, places
from fedadapt.experiment.study.machine import Room, gpu_bytes
from fedadapt.experiment.study.workers import STOPPED, Advanced, Ended, Workers
from fedadapt.runs.results import RESULTS, CellResult, PlaceResult, Results, RunRecord, Status, read_record
from fedadapt.runs.store import FILE, RunStore
from fedadapt.training.processor import cores

CELLS = "cells"
"""The folder of the cells' run directories, which studies share."""

GLANCE_S = 0.5


class Spectator:
    """Is told how a study goes; by itself it does nothing."""

    def begin(self, jobs: int, threads: int) -> None:
        """The study starts: how many cells are run side by side, and with how many threads each."""

    def planned(self, left: Sequence[Cell]) -> None:
        """What is left to be run, as far as it is known; told again when a cell has ended."""

    def started(self, cell: Cell) -> None:
        """A cell is being run."""

    def advanced(self, event: Advanced) -> None:
        """A cell has come further."""

    def ended(self, cell: Cell, result: CellResult) -> None:
        """A cell has a result."""

    def stopping(self, running: Sequence[Cell]) -> None:
        """Ctrl-C: what is running stops after its round."""


def conduct(
    study: Study,
    folder: Path = Path("runs"),
    *,
    jobs: int | None = None,
    wanted: Sequence[Place] | None = None,
    known: Mapping[str, CellResult] | None = None,
    overwrite: bool = False,
    spectator: Spectator | None = None,
) -> tuple[Path, Plan, dict[str, CellResult]]:
    """Runs every cell of a study that has no result yet.

    Args:
        study: what to do.
        folder: run directories come to ``folder/cells``, the results to ``folder/NAME``.
        jobs: cells side by side; None takes as many as there are cores, and as memory allows.
        wanted: the places to do; None does all.
        known: results from elsewhere that a search may rest on; cells of the grid are run all the same.
        overwrite: do cells of the grid again that have a result, and what a search has begun from its start.
        spectator: told of progress.

    Returns:
        The results file, the plan when nothing was left of it, and the result of every cell by digest.

    Raises:
        ConfigError: the study cannot be, here or anywhere.
        RunError: the results cannot be written, or cells could not be run for reasons that are not theirs.
        Interrupted: Ctrl-C; whole rounds and finished cells are on disk.
    """
    chosen = places(study) if wanted is None else list(wanted)
    check(study, chosen)
    spectator, known = spectator or Spectator(), known or {}
    with Results.write(folder / study.config.name) as results:
        found = current(results)
        _describe(study, results, {**known, **found})
        if overwrite:
            plan = make_plan(study, chosen, {**known, **found})
            lost = [cell for cell in plan.waiting if cell.number in plan.lost]
            begun = (
                one
                for one in plan.searches
                if one.digest not in {**known, **found} or any(one.is_for(cell) for cell in lost)
            )
            for cell in (*plan.cells.values(), *begun):
                RunStore.remove(folder / CELLS / cell.digest)
                results.forget(cell.digest)
                found.pop(cell.digest, None)
        _check_devices(study, make_plan(study, chosen, {**known, **found}).needed(found, known))
        _Conduct(study, folder, results, found, known, spectator).to_the_end(chosen, jobs)
        _describe(study, results, {**known, **found})
    plan = make_plan(study, chosen, {**known, **found})
    broken = [result for result in found.values() if result.status is Status.BROKEN]
    if broken:
        raise RunError(
            f"{len(broken)} cells could not be run; the first because: {broken[0].reason}; "
            "remove the cause and give the same command again"
        )
    if lost := [cell for cell in plan.waiting if cell.number in plan.lost]:
        reasons = ({**known, **found}[one.digest].reason for one in plan.searches if one.is_for(lost[0]))
        raise RunError(
            f"{len(lost)} cells have no rate, since no run of their search worked; the first because: "
            f"{next(reasons)}; change values, at or settings of [search], or do it again with --overwrite"
        )
    return folder / study.config.name / RESULTS, plan, found


def choose(study: Study, cells: Sequence[int] = (), only: Sequence[Pattern] = ()) -> list[Place]:
    """The places of the grid that are meant by number, or by values of axes.

    Args:
        study: whose grid.
        cells: numbers in the grid.
        only: values that a place must have; of several for an axis, one.

    Raises:
        ConfigError: there is no such place.
    """
    grid = places(study)
    together: dict[str, list[Any]] = {}
    for pattern in only:
        check_pattern("--only", pattern, study.config)
        for axis, value in pattern.items():
            together.setdefault(axis, []).append(value)
    for cell in cells:
        if not 1 <= cell <= len(grid):
            raise ConfigError(
                f"--cell is {cell}; it must be from 1 to {len(grid)}; --dry-run lists the cells"
            )
    left = [
        place for place in grid if matches(together, place.labels) and (not cells or place.number in cells)
    ]
    if not left:
        raise ConfigError("--cell and --only leave no cell of the study")
    return left


def foresee(
    study: Study, folder: Path, wanted: Sequence[Place], known: Mapping[str, CellResult]
) -> tuple[Plan, dict[str, CellResult]]:
    """What is known of a study before it goes on: its plan and the results that there are.

    Args:
        study: what to look at.
        folder: as of `conduct`.
        wanted: the places to look at.
        known: results from elsewhere that a search may rest on.

    Raises:
        ConfigError: the study cannot be.
    """
    check(study, list(wanted))
    file = folder / study.config.name / RESULTS
    found: dict[str, CellResult] = {}
    if file.exists():
        with Results.read(file) as results:
            found = current(results)
    return make_plan(study, list(wanted), {**known, **found}), found


def share_out(jobs: int | None, cells: int) -> tuple[int, int]:
    """Cells side by side, and threads of each, on this machine; OMP_NUM_THREADS is the most that a cell gets.

    Example:
        >>> share_out(1, 10)[0], share_out(None, 1)[0]
        (1, 1)
    """
    side_by_side = max(1, min(jobs or cores(), cells))
    threads = max(1, cores() // side_by_side)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return side_by_side, min(threads, int(asked)) if asked.isdigit() and int(asked) else threads


class _Conduct:
    """A study that is being done."""

    def __init__(
        self,
        study: Study,
        folder: Path,
        results: Results,
        found: dict[str, CellResult],
        known: Mapping[str, CellResult],
        spectator: Spectator,
    ) -> None:
        self.study = study
        self.folder = folder
        self.results = results
        self.found = found
        self.known = known
        self.spectator = spectator

    def to_the_end(self, chosen: list[Place], jobs: int | None) -> None:
        needed, waiting = self._left(chosen)
        side_by_side, threads = share_out(jobs, len(needed) + len(waiting))
        room = Room(gpu_bytes(self.study.configure({}).train.device))
        self.spectator.begin(side_by_side, threads)
        self.spectator.planned([*needed, *waiting])
        stopping = False
        with interruptible() as stop_asked, Workers(self.folder / CELLS, threads, room) as workers:
            while workers.running or (needed and not stopping):
                if stop_asked() and not stopping:
                    stopping = True
                    workers.stop()
                    self.spectator.stopping(workers.running)
                while needed and not stopping and len(workers.running) < side_by_side:
                    if not workers.begin(needed[0]):
                        break
                    self.spectator.started(needed.pop(0))
                for event in workers.events(GLANCE_S):
                    if isinstance(event, Advanced):
                        self.spectator.advanced(event)
                        continue
                    if event.status != STOPPED:
                        self._ended(event)
                    needed, waiting = self._left(chosen)
                    self.spectator.planned([*needed, *waiting])
                    busy = {cell.digest for cell in workers.running}
                    needed = [cell for cell in needed if cell.digest not in busy]
        if needed:
            raise Interrupted(
                f"stopped with {len(needed) + len(waiting)} cells left; go on with: fedadapt study {self.study.path}"
            )

    def _left(self, chosen: list[Place]) -> tuple[list[Cell], tuple[Cell, ...]]:
        """What can be run now, and what waits for a search."""
        plan = make_plan(self.study, chosen, {**self.known, **self.found})
        return plan.needed(self.found, self.known), plan.waiting

    def _ended(self, event: Ended) -> None:
        cell = event.cell
        path = self.folder / CELLS / cell.digest
        status, reason, record = Status(event.status), event.reason, None
        try:
            if status is Status.DONE or (path / FILE).exists():
                record = _record(path, cell.config.rounds if status is Status.DONE else 0)
        except RunError as error:
            status, record = Status.BROKEN, None
            reason = f"{reason}; {error}" if reason else str(error)
        result = CellResult(
            cell.digest,
            status,
            cell.config.model_dump(mode="json"),
            reason,
            record,
            None if record is None else record.accuracy,
        )
        self.results.keep(result)
        self.found[cell.digest] = result
        if cell.stage is Stage.SEARCH:
            # It may be known now which cells the grid has: whoever looks, also after a stop, sees those that are done.
            _describe(self.study, self.results, {**self.known, **self.found})
        self.spectator.ended(cell, result)


def _record(path: Path, rounds: int) -> RunRecord:
    """What a run wrote down, if it can be kept.

    Raises:
        RunError: the run is damaged, or too long a tale, or has fewer than so many rounds.
    """
    record = read_record(path)
    record.to_bytes()
    if rounds and (not record.rounds or record.rounds[-1].round < rounds):
        raise RunError(f"run {path} has fewer than the {rounds} rounds that it was to have; remove it")
    return record


def _check_devices(study: Study, cells: Sequence[Cell]) -> None:
    """Refuses what cannot be computed on this machine, before any of it is begun.

    Raises:
        NoDevice: the first reason.
    """
    for cell in cells:
        try:
            cell.config.train.resolve_device()
        except ConfigError as error:
            raise NoDevice(f"study {study.path}, cell {cell.title}: {error}") from None


def current(results: Results) -> dict[str, CellResult]:
    """The results that stand: not those of a machine's failure, nor of what was once the default."""

    def stands(result: CellResult) -> bool:
        if result.status is Status.BROKEN:
            return False
        try:
            return digest(make_config(result.config)) == result.digest
        except ConfigError:
            return False

    return {key: result for key, result in results.cells().items() if stands(result)}


def _describe(study: Study, results: Results, found: Mapping[str, CellResult]) -> None:
    """Writes down what the study is, and where every cell stands that follows from what was found by now."""
    sound = {key: result for key, result in found.items() if result.status is not Status.BROKEN}
    plan = make_plan(study, places(study), sound)
    standing = [
        PlaceResult(str(cell.stage), cell.number, dict(cell.labels), cell.digest)
        for cell in (
            *plan.searches,
            *plan.cells.values(),
            *(c for c in plan.waiting if c.number in plan.lost),
        )
    ]
    # A page that is read elsewhere says nothing of where on this machine a study lies.
    inside = not study.path.is_absolute() and ".." not in study.path.parts
    file = study.path.as_posix() if inside else study.path.name
    document = study.config.model_dump(mode="json") | {"given": list(study.given), "file": file}
    results.describe(document, standing)

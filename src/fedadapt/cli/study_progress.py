"""What a person sees of a study: what it will be, how far it is, and what came out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from fedadapt.experiment.study import Spectator, Study
from fedadapt.experiment.study.compare import Compared
from fedadapt.experiment.study.estimate import images
from fedadapt.experiment.study.grid import Cell, Plan
from fedadapt.experiment.study.workers import Advanced
from fedadapt.report.tables import UNKNOWN, format_bytes, format_seconds
from fedadapt.runs.results import CellResult, Status


class StudyProgress(Spectator):
    """Prints cells as they end; on a terminal also a bar for the study and one for each cell that is run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("study", total=None, note="")
        self._bars: dict[str, TaskID] = {}
        self._share: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._left: list[Cell] = []
        self._ended_images = 0.0
        self._ended_cells = 0
        self._begun_at = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, jobs: int, threads: int) -> None:
        """Says how it is run."""
        cells, each = ("cell", "cells")[jobs > 1], ("thread", "threads")[threads > 1]
        self._console.print(f"{jobs} {cells} side by side, {threads} {each} each")
        self._begun_at = time.monotonic()

    def planned(self, left: Sequence[Cell]) -> None:
        """Takes note of what is left."""
        self._left = list(left)
        self._show()

    def started(self, cell: Cell) -> None:
        """Adds a bar for the cell."""
        total = cell.config.rounds
        self._bars[cell.digest] = self._progress.add_task(f"  {cell.title}", total=total, note="")

    def advanced(self, event: Advanced) -> None:
        """Moves the cell's bar."""
        cell = event.cell
        note = "" if event.accuracy is None else f"{100 * event.accuracy:.2f} %"
        self._share[cell.digest] = event.rounds / cell.config.rounds
        # What an earlier session did of it says nothing of the speed of this one.
        self._first.setdefault(cell.digest, self._share[cell.digest])
        if cell.digest in self._bars:
            self._progress.update(self._bars[cell.digest], completed=event.rounds, note=note)
        self._show()

    def ended(self, cell: Cell, result: CellResult) -> None:
        """One line for the cell."""
        if (bar := self._bars.pop(cell.digest, None)) is not None:
            self._progress.remove_task(bar)
        self._ended_cells += 1
        self._ended_images += (images(cell.config) or 0.0) * (1 - self._first.get(cell.digest, 0.0))
        self._share.pop(cell.digest, None)
        self._left = [one for one in self._left if one.digest != cell.digest]
        number = f"{cell.stage} {cell.number}" if cell.number else str(cell.stage)
        seconds = 0.0 if result.record is None else sum(r.wall_s for r in result.record.rounds)
        told = (
            f"{_accuracy(result)} in {format_seconds(seconds)}"
            if result.status is Status.DONE
            else result.reason
        )
        self._console.print(
            f"{number}: {cell.title}  {result.status}: {told}  ({len(self._left)} left{self._time_left()})",
            soft_wrap=True,
            markup=False,
        )

    def stopping(self, running: Sequence[Cell]) -> None:
        """Says that Ctrl-C was understood."""
        self._console.print(f"stopping after the rounds of {len(running)} cells; Ctrl-C again stops at once")

    def _show(self) -> None:
        done, left = self._ended_cells, len(self._left)
        self._progress.update(
            self._all, total=done + left, completed=done, note=f"{left} cells left{self._time_left()}"
        )

    def _time_left(self) -> str:
        """How long what is left takes, at the speed of what was done in this session."""
        sizes = {cell.digest: images(cell.config) or 0.0 for cell in self._left}
        under_way = {digest: share for digest, share in self._share.items() if digest in sizes}
        done = self._ended_images + sum(
            sizes[digest] * (share - self._first.get(digest, 0.0)) for digest, share in under_way.items()
        )
        left = sum(size * (1 - under_way.get(digest, 0.0)) for digest, size in sizes.items())
        if not done or not left:
            return ""
        return f", about {format_seconds(left * (time.monotonic() - self._begun_at) / done)}"


def foretold(
    study: Study,
    plan: Plan,
    found: Mapping[str, CellResult],
    known: Mapping[str, CellResult],
    shared_out: tuple[int, int],
) -> Iterator[RenderableType]:
    """The grid with its counts, and how much work is left, before anything runs."""
    config, (jobs, threads) = study.config, shared_out
    cells = [*plan.cells.values(), *plan.waiting]
    axes = _table(("axis", "values and how many cells have them"))
    axes.title, axes.title_justify = Text(config.title or config.name, style="table.title"), "left"
    for axis in (*config.axes, "seed"):
        counts = Counter(cell.labels[axis] for cell in cells)
        _add(axes, axis, ", ".join(f"{value} {count}" for value, count in counts.items()))
    yield axes
    table = _table(("cell", *config.axes, "seed", "images", "state"), {"cell", "images"})
    for cell in sorted(cells, key=lambda cell: cell.number):
        result = found.get(cell.digest)
        state = "waits for its search" if cell in plan.waiting else "to be run"
        if cell.number in plan.lost:
            state = "no run of its search worked"
        _add(
            table,
            str(cell.number),
            *cell.labels.values(),
            _count(images(cell.config)),
            state if result is None else f"{result.status}, {_accuracy(result)}",
        )
    yield table
    left = [*plan.needed(found, known), *plan.waiting]
    amounts = [images(cell.config) for cell in left]
    work = sum(amount or 0.0 for amount in amounts)
    speed = config.images_per_second
    yield (
        f"{len(cells)} cells and {len(plan.searches)} short runs of the search; {len(left)} are left to be run: "
        f"{_count(work)} images, about {format_seconds(work / speed / (jobs * threads))} "
        f"at {speed:g} images a second on each of {jobs * threads} cores"
    )
    if None in amounts:
        yield f"the data of {amounts.count(None)} cells cannot be read here, so they are not in the estimate"


def outcomes(plan: Plan, found: Mapping[str, CellResult]) -> Table:
    """What came out, a row a cell."""
    cells = [cell for cell in plan.cells.values() if cell.digest in found]
    axes = list(cells[0].labels) if cells else []
    table = _table(("cell", *axes, "accuracy", "moved", "run"), {"cell", "accuracy", "moved"})
    for cell in cells:
        result = found[cell.digest]
        moved = Compared.bytes_of(result)
        _add(
            table,
            str(cell.number),
            *cell.labels.values(),
            _accuracy(result) if result.status is Status.DONE else str(result.status),
            UNKNOWN if moved is None else format_bytes(moved),
            cell.digest if result.status is Status.DONE else result.reason,
        )
    return table


def compared(cells: Sequence[Compared]) -> Table:
    """Cells here and elsewhere, side by side."""
    numbers = ("accuracy here", "there", "bytes here", "there")
    table = _table(("cell", *numbers, ""), {*numbers})
    for one in cells:
        both = [one.here, *([] if one.there is None else [one.there])]
        accuracies = [_accuracy(result) for result in both]
        moved = [UNKNOWN if (n := Compared.bytes_of(result)) is None else f"{n:,}" for result in both]
        _add(
            table,
            one.cell.title,
            accuracies[0],
            accuracies[1] if one.there else UNKNOWN,
            moved[0],
            moved[1] if one.there else UNKNOWN,
            "agrees" if one.agrees else "differs" if one.there else "is not there",
        )
    return table


def _table(heads: Sequence[str], numeric: Container[str] = ()) -> Table:
    """An empty table; heads and cells are text as it is, which nothing in it marks up."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(Text(head), justify="right" if head in numeric else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))


def _accuracy(result: CellResult) -> str:
    return UNKNOWN if result.accuracy is None else f"{100 * result.accuracy:.2f} %"


def _count(number: float | None) -> str:
    return UNKNOWN if number is None else f"{number:,.0f}"

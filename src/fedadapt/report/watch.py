"""A run while it goes on: looked at again and again, and drawn as one frame for a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedadapt.errors import one_line
from fedadapt.report.gather import Condition, RunReader, RunSummary
from fedadapt.report.partition import LEVELS
from fedadapt.report.tables import UNKNOWN, format_accuracy, format_bytes, format_seconds
from fedadapt.runs.lock import is_held
from fedadapt.runs.log import last_lines
from fedadapt.runs.records import Outcome

ROUNDS, ABSENTEES, LINES = 8, 8, 4
"""How many rounds, clients that gave nothing, and lines of a server's log a frame shows."""

CURVE = 40
"""Rounds in the curve of accuracy."""

STYLES = {Condition.RUNNING: "green", Condition.FINISHED: "bold", Condition.STOPPED: "red"}


@dataclass(frozen=True)
class Sight:
    """What one look at a run directory shows.

    Args:
        path: the directory.
        run: what is committed; None if that is nothing yet.
        condition: how it stands with the run.
        log: the last lines of the server's log, if a server leads the run.
    """

    path: Path
    run: RunSummary | None
    condition: Condition
    log: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The sight as one object of ``watch --json``: that of ``compare --json``, and the last round."""
        run = self.run
        standing = {"path": str(self.path), "condition": str(self.condition), "log": list(self.log)}
        if run is None:
            return {"run": self.path.resolve().name, "rounds": None, **standing}
        return {
            **run.as_json(),
            **standing,
            "planned_rounds": run.planned_rounds,
            "time_left_s": run.time_left_s,
            "last_round": {
                "round": run.rounds,
                "accuracy": run.accuracy_by_round.get(run.rounds),
                "loss": run.loss_by_round.get(run.rounds),
                "upload_bytes": _step(run.upload_by_round, run.rounds),
                "download_bytes": _step(run.download_by_round, run.rounds),
                "wall_s": run.seconds_by_round[run.rounds],
                "clients": [
                    {
                        "client": record.client,
                        "outcome": str(record.outcome),
                        "reason": record.reason,
                        "accuracy": record.accuracy,
                    }
                    for record in run.last_clients
                ],
            },
        }


def follow(
    paths: Sequence[Path], every_s: float = 1.0, wait: Callable[[float], None] = time.sleep
) -> Iterator[list[Sight]]:
    """The runs as they are now, and again whenever they have changed, until all are finished.

    A run that stopped is not finished: somebody may go on with it.

    Args:
        paths: run directories.
        every_s: seconds between two looks.
        wait: waits so many seconds.

    Raises:
        RunError: a directory is missing or damaged.
    """
    readers = [(path, RunReader(path)) for path in paths]
    before: list[Sight] = []
    while True:
        now = [_look(path, reader) for path, reader in readers]
        if now != before:
            yield now
        if all(sight.condition is Condition.FINISHED for sight in now):
            return
        before = now
        wait(every_s)


def _look(path: Path, reader: RunReader) -> Sight:
    run = reader.look()
    begun = Condition.RUNNING if is_held(path) else Condition.STOPPED
    return Sight(path, run, begun if run is None else run.condition, last_lines(path, LINES))


def frame(sight: Sight) -> RenderableType:
    """The sight for a terminal of 80 columns or more."""
    parts: list[RenderableType] = [_heading(sight)]
    run = sight.run
    if run is not None:
        parts += [_progress(run), Text(), _facts(run), Text(), _rounds(run)]
        parts += [Text(line, style="yellow") for line in _absentees(run)]
    if sight.log:
        parts += [Text(), *(Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in sight.log)]
    return Group(*parts)


def _heading(sight: Sight) -> Text:
    name = sight.run.name if sight.run else sight.path.resolve().name
    heading = Text.assemble(
        (one_line(name), "bold"), "  ", (str(sight.condition), STYLES[sight.condition]), overflow="fold"
    )
    if sight.run is None:
        heading.append("; no round is committed yet")
    if sight.condition is Condition.STOPPED:
        again = (
            "serve RECIPE" if sight.run and sight.run.noted("engine") == "flower" else f"resume {sight.path}"
        )
        heading.append(f"; no process holds it, go on with: fedadapt {again}")
    return heading


def _progress(run: RunSummary) -> Table:
    grid = Table.grid(padding=(0, 2))
    left = run.time_left_s
    to_come = "" if left is None or run.condition is not Condition.RUNNING else f"{format_seconds(left)} left"
    grid.add_row(
        f"round {run.rounds} of {run.planned_rounds}",
        ProgressBar(total=max(1, run.planned_rounds), completed=run.rounds, width=40),
        to_come,
    )
    return grid


def _facts(run: RunSummary) -> Table:
    done = max(1, run.rounds)
    moved = (
        f"{format_bytes(run.download_bytes)} down, {format_bytes(run.upload_bytes)} up, "
        f"{format_bytes(run.total_bytes // done)} a round"
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    grid.add_row("accuracy", f"{format_accuracy(run.accuracy)}, best {format_accuracy(run.best_accuracy)}")
    grid.add_row("", curve(list(run.accuracy_by_round.values())[-CURVE:]))
    grid.add_row("loss", _loss(run.loss))
    grid.add_row("moved", moved)
    grid.add_row("time", f"{format_seconds(run.wall_s)}, {format_seconds(run.wall_s / done)} a round")
    return grid


def curve(values: Sequence[float]) -> str:
    """Values as blocks, from the lowest to the highest of them.

    Example:
        >>> curve([0.1, 0.2, 0.3])
        '▁▅█'
    """
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    # The first level is a blank, and a value that is there is never drawn as none.
    return "".join(LEVELS[1 + round((value - low) / (span or 1) * (len(LEVELS) - 2))] for value in values)


def _rounds(run: RunSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("round", "accuracy", "loss", "down", "up", "answered", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for number in range(max(0, run.rounds - ROUNDS + 1), run.rounds + 1):
        answers = run.answers.get(number, {})
        asked, counted = sum(answers.values()), answers.get(Outcome.ACCEPTED, 0)
        table.add_row(
            str(number),
            format_accuracy(run.accuracy_by_round.get(number)),
            _loss(run.loss_by_round.get(number)),
            format_bytes(_step(run.download_by_round, number)),
            format_bytes(_step(run.upload_by_round, number)),
            Text(f"{counted} of {asked}", style="" if counted == asked else "yellow") if asked else UNKNOWN,
            format_seconds(run.seconds_by_round[number]),
        )
    return table


def _absentees(run: RunSummary) -> Iterator[str]:
    """Who gave nothing that counted in the last round, and why."""
    lost = [record for record in run.last_clients if record.outcome is not Outcome.ACCEPTED]
    for record in lost[:ABSENTEES]:
        yield f"client {record.client} {record.outcome}: {one_line(record.reason) or 'no reason given'}"
    if len(lost) > ABSENTEES:
        yield f"and {len(lost) - ABSENTEES} more clients"


def _step(cumulative: Any, number: int) -> int:
    return cumulative[number] - cumulative.get(number - 1, 0)


def _loss(loss: float | None) -> str:
    return UNKNOWN if loss is None else f"{loss:.4f}"

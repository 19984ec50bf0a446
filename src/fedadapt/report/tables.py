"""The comparison of runs as rows of text, and as a table for the terminal; how bytes and times are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fedadapt.report.gather import RunSummary, labels
from fedadapt.runs.results import AccuracyOf

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
"""Powers of 1024."""

UNKNOWN = "–"
"""Written where a run has no such number."""


NOT_GLOBAL = (
    "Where clients keep tensors, accuracy is of their own models on their own held-out samples, in the mean; or, where "
    "they hold none out, of the shared part alone, which is nobody's model. Where there is no test set, it is of what clients "
    "use on their own held-out samples, in the mean."
)
"""Said where some accuracy is not of the global model."""

STACKS = (
    ("run", "adapter", "algorithm"),
    ("accuracy", "points", "of"),
    ("bytes up", "bytes down"),
    ("bytes total", "share", "of last round"),
    ("with backbone", "share with it", "backbone once"),
    ("rounds", "time"),
)
"""What the terminal sets below each other, so that the comparison fits 80 columns."""


RELATIVE = ("points", "share", "of last round", "share with it")
"""Columns that say nothing of one run alone."""


@dataclass(frozen=True)
class Column:
    """A column of the comparison.

    Args:
        title: its heading.
        numeric: whether its cells are numbers, set flush right.
        cells: one text a run.
    """

    title: str
    numeric: bool
    cells: tuple[str, ...]


def format_bytes(num_bytes: int) -> str:
    """Bytes for people: three significant digits and a power of 1024.

    Example:
        >>> format_bytes(1000), format_bytes(1536), format_bytes(45 * 1024**2)
        ('1000 B', '1.50 KiB', '45.0 MiB')
    """
    if num_bytes < 1024:
        return f"{num_bytes} B"
    value, unit = float(num_bytes), 0
    # What would round up to 1024 of a unit is 1.00 of the next.
    while value >= 1023.5 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {UNITS[unit]}"


def format_seconds(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> format_seconds(4.21), format_seconds(200), format_seconds(7500)
        ('4.2 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_accuracy(accuracy: float | None) -> str:
    """An accuracy of 0..1 as a percentage with one decimal."""
    return UNKNOWN if accuracy is None else f"{100 * accuracy:.1f} %"


def format_share(part: int, whole: int) -> str:
    """`part` of `whole` in percent, with three significant digits.

    Example:
        >>> format_share(1, 3), format_share(1, 1000), format_share(26, 2), format_share(0, 0)
        ('33.3 %', '0.1 %', '1,300 %', '–')
    """
    if not whole:
        return UNKNOWN
    percent = 100 * part / whole
    if percent >= 100:
        return f"{percent:,.0f} %"
    return "<0.001 %" if 0 < percent < 0.001 else f"{percent:.3g} %"


def reference_run(runs: Sequence[RunSummary]) -> int:
    """Which run the others are measured against: the first of those that moved the most bytes."""
    return max(range(len(runs)), key=lambda index: (runs[index].total_bytes, -index))


def compare_columns(runs: Sequence[RunSummary]) -> tuple[Column, ...]:
    """The comparison by column, as text; both the terminal's table and the page's are made of these."""
    reference = runs[reference_run(runs)]
    return (
        Column("run", False, tuple(labels(runs))),
        Column("adapter", False, tuple(run.adapter for run in runs)),
        Column("algorithm", False, tuple(run.algorithm for run in runs)),
        Column("rounds", True, tuple(_rounds(run) for run in runs)),
        Column("accuracy", True, tuple(format_accuracy(run.accuracy) for run in runs)),
        Column("of", False, tuple(str(run.accuracy_of) for run in runs)),
        Column("points", True, tuple(_points(run, reference) for run in runs)),
        Column("bytes up", True, tuple(format_bytes(run.upload_bytes) for run in runs)),
        Column("bytes down", True, tuple(format_bytes(run.download_bytes) for run in runs)),
        Column("bytes total", True, tuple(format_bytes(run.total_bytes) for run in runs)),
        Column("share", True, tuple(format_share(run.total_bytes, reference.total_bytes) for run in runs)),
        Column(
            "of last round",
            True,
            tuple(format_share(run.last_round_bytes, reference.last_round_bytes) for run in runs),
        ),
        Column("with backbone", True, tuple(format_bytes(run.total_with_backbone_bytes) for run in runs)),
        Column(
            "share with it",
            True,
            tuple(
                format_share(run.total_with_backbone_bytes, reference.total_with_backbone_bytes)
                for run in runs
            ),
        ),
        Column("backbone once", True, tuple(format_bytes(run.once_bytes) for run in runs)),
        Column("time", True, tuple(format_seconds(run.wall_s) for run in runs)),
    )


def compare_note(runs: Sequence[RunSummary]) -> str:
    """What the columns of the comparison mean, in a sentence or two."""
    note = (
        "Bytes are summed over all clients and rounds. The backbone is not among them but where it says so: "
        "once for every client that was asked, as if none had it before."
    )
    if any(run.accuracy_of is not AccuracyOf.GLOBAL for run in runs):
        note = f"{NOT_GLOBAL} {note}"
    if len(runs) == 1:
        return note
    name = labels(runs)[reference_run(runs)]
    return f"Points of accuracy and shares of bytes are against {name}, the run that moved the most. {note}"


def compare_table(runs: Sequence[RunSummary]) -> Table:
    """The comparison of one or more runs for the terminal.

    Args:
        runs: in the order of the rows; at least one.
    """
    columns = {column.title: column for column in compare_columns(runs)}
    note = Text(compare_note(runs), style="dim", overflow="fold")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, leading=1, caption=note, caption_justify="left")
    for titles in STACKS:
        numeric = columns[titles[0]].numeric
        # Text folds before a number does: half a number says something else.
        table.add_column(
            "\n".join(titles if len(titles) > 1 else titles[0].split()),
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="fold",
        )
    for index in range(len(runs)):
        table.add_row(*(_stacked([columns[title].cells[index] for title in titles]) for titles in STACKS))
    return table


def plain_table(columns: Sequence[Column], note: str = "") -> Table:
    """Columns side by side for the terminal; text folds before a number does."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    if note:
        table.caption = Text(note, style="dim", overflow="fold")
    for column in columns:
        table.add_column(
            Text(column.title),
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow="fold",
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _stacked(cells: Sequence[str]) -> Text:
    """Cells of one run, one above the other; the first counts, the others explain it."""
    return Text("\n").join(
        Text(cell, style="bold" if index == 0 and len(cells) > 2 else "") for index, cell in enumerate(cells)
    )


def _rounds(run: RunSummary) -> str:
    return str(run.rounds) if run.finished else f"{run.rounds} of {run.planned_rounds}"


def _points(run: RunSummary, reference: RunSummary) -> str:
    if run is reference or run.accuracy is None or reference.accuracy is None:
        return UNKNOWN
    if run.accuracy_of is not reference.accuracy_of:
        # Other models on other samples: the difference would say nothing.
        return UNKNOWN
    # Rounding can leave a negative zero.
    return f"{round(100 * (run.accuracy - reference.accuracy), 1) + 0.0:+.1f}"

"""A still figure, in a light and a dark form, for pages that run no script.

Still figures are drawn by matplotlib because plotly needs a browser for them. Colours are those of the pages; text
is as large as it needs to be where a figure is shown at half the width of a page.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, TypeVar

from fedadapt.report.document import write_text
from fedadapt.report.figures import PALETTE, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEMES = {
    "light": {
        "text": "#1b1f24",
        "muted": "#59636e",
        "rule": "#d9dee3",
        "band": "#0072b2",
        "surface": "#ffffff",
    },
    "dark": {
        "text": "#e7eaee",
        "muted": "#9aa4af",
        "rule": "#333a43",
        "band": "#56b4e9",
        "surface": "#0d1117",
    },
}
MARKERS = ("o", "s", "D", "^", "X", "P", "*")
DASHES = ("-", "--", ":", "-.")
WIDTH_IN, PANEL_IN, FONT = 7.2, 2.9, 13
MAX_COLUMNS, TITLE_CHARACTERS = 2, 30

Draw = Callable[["Figure", dict[str, str]], None]


@dataclass(frozen=True)
class Plate:
    """A figure: how it is drawn, what it shows, and the numbers in it.

    Args:
        name: of its files.
        title: its heading.
        note: how it is to be read.
        draw: puts it on an empty figure, in the colours of a theme.
        height_in: inches.
        heads: of the table of its numbers.
        rows: of that table.
    """

    name: str
    title: str
    note: str
    draw: Draw
    height_in: float
    heads: tuple[str, ...]
    rows: list[tuple[object, ...]]


def write_plate(plate: Plate, folder: Path) -> None:
    """Writes ``NAME-light.svg``, ``NAME-dark.svg`` and ``NAME.csv``; the same numbers give the same bytes.

    Raises:
        RunError: a file cannot be written.
    """
    from matplotlib.figure import Figure

    for name, theme in THEMES.items():
        with style(theme):
            figure = Figure(figsize=(WIDTH_IN, plate.height_in), layout="constrained")
            plate.draw(figure, theme)
            text = io.StringIO()
            figure.savefig(
                text, format="svg", metadata={"Date": None, "Creator": "fedadapt"}, transparent=True
            )
        # matplotlib ends some lines of a path with a space.
        lines = (line.rstrip() for line in text.getvalue().splitlines())
        write_text(folder / f"{plate.name}-{name}.svg", "\n".join(lines) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(plate.heads)
    writer.writerows(plate.rows)
    write_text(folder / f"{plate.name}.csv", table.getvalue())


@contextmanager
def style(theme: dict[str, str]) -> Iterator[None]:
    """The colours of a theme, and what all figures share, while the context is open."""
    import matplotlib as mpl
    from cycler import cycler

    settings: Any = {
        "svg.hashsalt": "fedadapt",
        "font.size": FONT,
        "font.family": "DejaVu Sans",
        "axes.titlesize": FONT,
        "axes.titlelocation": "left",
        "axes.facecolor": "none",
        "axes.edgecolor": theme["rule"],
        "axes.labelcolor": theme["muted"],
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme["rule"],
        "grid.linewidth": 0.7,
        "text.color": theme["text"],
        "xtick.color": theme["rule"],
        "ytick.color": theme["rule"],
        "xtick.labelcolor": theme["muted"],
        "ytick.labelcolor": theme["muted"],
        "lines.linewidth": 2,
        "lines.markersize": 7,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield


Shown = TypeVar("Shown")


def panels(figure: Figure, shown: Sequence[tuple[str, Shown]]) -> Iterator[tuple[Axes, Shown]]:
    """A panel for each of the things that are shown, with its title where there are several."""
    columns = max(1, min(MAX_COLUMNS, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, (title, one) in zip(grid, shown, strict=False):
        if len(shown) > 1:
            axes.set_title(fill(title, TITLE_CHARACTERS))
        yield axes, one


def height_of(count: int, names: Sequence[str] = ()) -> float:
    """Inches for so many panels and the legend of these names below them."""
    panel = PANEL_IN if count > 1 else PANEL_IN + 0.5
    rows = math.ceil(len(names) / _columns(names)) if names else 0
    return 0.9 + panel * math.ceil(count / MAX_COLUMNS) + 0.27 * max(0, rows - 2)


def _columns(names: Sequence[str]) -> int:
    """How many names of a legend stand side by side."""
    # A letter is a little over half as wide as it is high; a line and the gaps around it are five letters high.
    entry = FONT * (0.56 * max(map(len, names)) + 5)
    return min(4, len(names), max(1, int(72 * WIDTH_IN / entry)))


def legend(figure: Figure, theme: dict[str, str]) -> None:
    """One legend for all panels, below them; none for a single name."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    if len(entries) > 1:
        look: dict[str, Any] = {"labelcolor": theme["text"], "handlelength": 2.2, "columnspacing": 1.4}
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower center",
            ncols=_columns(list(entries)),
            **look,
        )


def axis_of_bytes(axes: Axes) -> None:
    """A logarithmic axis of MiB with few, plain ticks."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in log_ticks(low, high) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("MiB moved")


def colour(index: int) -> str:
    """The colour of the value at that place."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Its symbol: colour alone does not reach every reader, and where colours come again, other symbols go with them."""
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def dash(index: int) -> str:
    """Its line."""
    return DASHES[index % len(DASHES)]

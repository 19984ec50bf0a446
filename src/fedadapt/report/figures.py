"""The figures of a report, without colours of a theme: the page's script adds those of the reader's scheme.

Only this room knows plotly, and only inside its functions: importing the room stays quick.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedadapt.params import Group
from fedadapt.report.gather import RunSummary, labels
from fedadapt.report.tables import format_bytes
from fedadapt.runs.records import FRAMING, Direction

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""The colours of Okabe and Ito, which people with any colour vision tell apart, less the two that vanish on
white or on black (yellow, black); grey stands in."""

DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
PATTERNS = ("", "/", "x", ".")

GROUPS = (*(str(group) for group in Group), FRAMING)
"""What bytes belong to, in the order in which bars are stacked and coloured."""

SEQUENTIAL = "sequential"
"""The mark, in a trace's ``meta``, that its colour scale is the theme's."""

MEBIBYTE = 1024**2

MAX_DECADES_WITH_STEPS = 2
"""Log axes over more decades have ticks at the powers of ten alone, or labels meet on a phone."""

DENSE_ROUNDS = 40
"""Curves with more points than this are drawn without markers."""

MAX_CELLS_WITH_NUMBERS = 200
"""Heat maps of more cells are too dense to write the counts into."""

MAX_RATIO_OF_BARS = 20
"""Where the longest bar is more than this many times the shortest, stacked bytes become shares of each bar:
in bytes, the composition of the small ones could not be seen, and on a log axis stacked lengths say nothing."""


def safe(text: object) -> str:
    """Text as plotly shows it literally; plotly reads tags and entities in every label."""
    return html.escape(str(text), quote=False)


def accuracy_by_round(runs: Sequence[RunSummary]) -> Figure:
    """Accuracy on the global test set over rounds, one line a run; round 0 is before training."""
    return _by_round([run.accuracy_by_round for run in runs], labels(runs), percent=True)


def loss_by_round(runs: Sequence[RunSummary]) -> Figure:
    """Loss on the global test set over rounds, one line a run."""
    return _by_round([run.loss_by_round for run in runs], labels(runs), percent=False)


def accuracy_by_bytes(runs: Sequence[RunSummary]) -> Figure:
    """Accuracy over the bytes moved so far, both ways and all clients, on a log axis; so without round 0."""
    from plotly import graph_objects as go

    figure = go.Figure(layout=_layout(len(runs)))
    for index, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        points = moved_points(run)
        figure.add_scatter(
            x=[num_bytes / MEBIBYTE for _, num_bytes, _ in points],
            y=[100 * accuracy for _, _, accuracy in points],
            customdata=[[round, format_bytes(num_bytes)] for round, num_bytes, _ in points],
            hovertemplate="%{customdata[1]} after round %{customdata[0]}: %{y:.1f} %",
            **_line(index, name, len(points)),
        )
    moved = [num_bytes / MEBIBYTE for run in runs for _, num_bytes, _ in moved_points(run)]
    ticks = log_ticks(min(moved), max(moved)) if moved else []
    figure.update_xaxes(
        type="log",
        title="MiB moved, both ways, all clients",
        tickvals=ticks,
        ticktext=[f"{tick:,g}" for tick in ticks],
    )
    figure.update_yaxes(ticksuffix=" %", range=_percent_range([run.accuracy_by_round for run in runs]))
    return figure


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a log axis that show `low` to `high`: powers of ten, and 2 and 5 of each while few are needed.

    Example:
        >>> log_ticks(3, 40)
        [2.0, 5.0, 10.0, 20.0, 50.0]
        >>> log_ticks(0.5, 2000)
        [0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if math.log10(high / low) > MAX_DECADES_WITH_STEPS:
        return [float(f"1e{power}") for power in range(first, last + 1)]
    ticks = [float(f"{step}e{power}") for power in range(first - 1, last + 1) for step in (1, 2, 5)]
    below = max(tick for tick in ticks if tick <= low)
    above = min(tick for tick in ticks if tick >= high)
    return [tick for tick in ticks if below <= tick <= above]


def moved_points(run: RunSummary) -> list[tuple[int, int, float]]:
    """Round, bytes moved until then, and accuracy, wherever both bytes and accuracy are known and not zero bytes."""
    return [
        (round, moved, accuracy)
        for round, accuracy in sorted(run.accuracy_by_round.items())
        if (moved := run.upload_by_round[round] + run.download_by_round[round])
    ]


def bytes_by_group(runs: Sequence[RunSummary]) -> Figure:
    """What the bytes of each run were, by direction and group of tensors, as stacked bars."""
    from plotly import graph_objects as go

    moved = [(run, name) for run, name in zip(runs, labels(runs), strict=True) if run.total_bytes]
    bars = [(run, name, way) for run, name in moved for way in Direction]
    totals = [sum(_group_bytes(run, way, group) for group in groups_seen(runs)) for run, _, way in bars]
    shares = bars_are_shares(runs)
    figure = go.Figure(layout=_layout(len(groups_seen(runs)), height=100 + 52 * len(bars)))
    for group in groups_seen(runs):
        amounts = [_group_bytes(run, way, group) for run, _, way in bars]
        figure.add_bar(
            orientation="h",
            y=list(range(len(bars))),
            x=[
                100 * amount / (total or 1) if shares else amount / MEBIBYTE
                for amount, total in zip(amounts, totals, strict=True)
            ],
            name=group_title(group),
            customdata=[format_bytes(amount) for amount in amounts],
            hovertemplate="%{customdata}",
            marker={"color": PALETTE[_position(group) % len(PALETTE)], "line": {"width": 0}},
        )
    titles = [
        f"{safe(name)}, {way}: {format_bytes(total)}"
        for (_, name, way), total in zip(bars, totals, strict=True)
    ]
    _title_rows(figure, titles)
    figure.update_xaxes(
        title="share of the bar" if shares else "MiB",
        range=[0, 100] if shares else None,
        rangemode="tozero",
        ticksuffix=" %" if shares else None,
        nticks=6,
        tickangle=0,
    )
    figure.update_layout(barmode="stack", bargap=0.6, hovermode="closest", legend_traceorder="normal")
    return figure


def bars_are_shares(runs: Sequence[RunSummary]) -> bool:
    """Whether `bytes_by_group` draws shares of each bar, because the runs differ too much in bytes."""
    totals = [total for run in runs for total in (run.upload_bytes, run.download_bytes) if total]
    return bool(totals) and max(totals) > MAX_RATIO_OF_BARS * min(totals)


def groups_seen(runs: Sequence[RunSummary]) -> list[str]:
    """The groups that any of the runs moved bytes of, in stacking order."""
    return sorted({group for run in runs for _, group in run.group_bytes}, key=_position)


def group_title(group: str) -> str:
    """A group's name for people."""
    return group.replace("_", " ")


def accuracy_by_client(runs: Sequence[RunSummary]) -> Figure:
    """Each client's own accuracy as a point, with the quartiles of each run as a box."""
    from plotly import graph_objects as go

    measured = [(index, run) for index, run in enumerate(runs) if run.client_accuracy]
    names = labels(runs)
    figure = go.Figure(layout=_layout(1, height=100 + 84 * len(measured)))
    for row, (index, run) in enumerate(measured):
        clients = sorted(run.client_accuracy)
        figure.add_box(
            x=[100 * run.client_accuracy[client] for client in clients],
            y0=row,
            name=safe(names[index]),
            text=[f"client {client}" for client in clients],
            hovertemplate="%{text}: %{x:.1f} %",
            hoveron="points",
            boxpoints="all",
            pointpos=0,
            jitter=0.6,
            width=0.36,
            line={"color": _colour(index), "width": 1.5},
            fillcolor="rgba(0,0,0,0)",
            marker={"color": _colour(index), "size": 6, "opacity": 0.7},
            orientation="h",
            showlegend=False,
        )
    figure.update_xaxes(title="accuracy on the client's own held-out samples", ticksuffix=" %")
    _title_rows(figure, [safe(names[index]) for index, _ in measured])
    figure.update_layout(hovermode="closest")
    return figure


def label_heat_map(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> Figure:
    """How many samples of each class each client holds: a row a client, a column a class.

    Args:
        counts: K x D.
        class_names: D names.
    """
    from plotly import graph_objects as go

    clients, classes = len(counts), len(class_names)
    figure = go.Figure(layout=_layout(1, height=130 + min(900, max(160, clients * 26))))
    figure.add_heatmap(
        z=[list(row) for row in counts],
        x=_distinct(class_names),
        y=[str(client) for client in range(clients)],
        meta=SEQUENTIAL,
        xgap=2 if classes <= 60 else 0,
        ygap=2 if clients <= 60 else 0,
        texttemplate="%{z}" if clients * classes <= MAX_CELLS_WITH_NUMBERS else None,
        hovertemplate="client %{y}, %{x}: %{z} samples<extra></extra>",
        colorbar={"thickness": 10, "outlinewidth": 0, "title": {"text": "samples", "side": "right"}},
        showscale=clients * classes > MAX_CELLS_WITH_NUMBERS,
    )
    figure.update_xaxes(showgrid=False, type="category", side="top")
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed", title="client")
    figure.update_layout(hovermode="closest")
    return figure


def label_bars(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> Figure:
    """How much each client holds: a bar a client, stacked by class while the classes can be told apart.

    Args:
        counts: K x D.
        class_names: D names.
    """
    from plotly import graph_objects as go

    clients, classes = len(counts), len(class_names)
    stacked = classes <= len(PALETTE) * len(PATTERNS)
    height = 120 + min(900, max(160, clients * 24))
    figure = go.Figure(layout=_layout(classes if stacked else 1, height=height))
    rows = [str(client) for client in range(clients)]
    parts: list[tuple[str, list[int]]] = (
        [(name, [row[index] for row in counts]) for index, name in enumerate(_distinct(class_names))]
        if stacked
        else [("samples", [sum(row) for row in counts])]
    )
    for index, (name, amounts) in enumerate(parts):
        figure.add_bar(
            orientation="h",
            y=rows,
            x=amounts,
            name=name,
            hovertemplate="client %{y}: %{x}",
            marker={
                "color": _colour(index),
                "line": {"width": 0},
                "pattern": {"shape": PATTERNS[index // len(PALETTE)], "size": 5, "solidity": 0.35},
            },
        )
    figure.update_xaxes(title="samples")
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed", title="client")
    figure.update_layout(barmode="stack", bargap=0.25, hovermode="closest", legend_traceorder="normal")
    return figure


def _by_round(series: Sequence[Mapping[int, float]], names: Sequence[str], *, percent: bool) -> Figure:
    from plotly import graph_objects as go

    figure = go.Figure(layout=_layout(len(series)))
    for index, (values, name) in enumerate(zip(series, names, strict=True)):
        rounds = sorted(values)
        figure.add_scatter(
            x=rounds,
            y=[100 * values[round] if percent else values[round] for round in rounds],
            hovertemplate="%{y:.1f} %" if percent else "%{y:.4f}",
            **_line(index, name, len(rounds)),
        )
    last = max((round for values in series for round in values), default=0)
    figure.update_xaxes(title="round", rangemode="tozero", tickformat="d", dtick=1 if last <= 10 else None)
    if percent:
        figure.update_yaxes(ticksuffix=" %", range=_percent_range(series))
    figure.update_layout(hovermode="x unified" if len(series) <= len(PALETTE) else "closest")
    return figure


def _percent_range(series: Sequence[Mapping[int, float]]) -> list[float]:
    """Room around all accuracies, also around a single one, but none below 0 or above 100 %."""
    values = [100 * value for accuracies in series for value in accuracies.values()]
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 1.5)
    return [max(low - room, -1.5), min(high + room, 101.5)]


def _title_rows(figure: Figure, titles: Sequence[str]) -> None:
    """Sets each row's title above it instead of beside it: on a phone there is no room beside."""
    for row, title in enumerate(titles):
        figure.add_annotation(
            x=0,
            xref="x domain",
            y=row,
            text=title,
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            yshift=14,
        )
    figure.update_yaxes(showgrid=False, showticklabels=False, range=[len(titles) - 0.5, -0.7])


def _line(index: int, name: str, points: int) -> dict[str, Any]:
    """Colour, dash and symbol of one run: colour alone does not reach every reader."""
    return {
        "name": safe(name),
        "cliponaxis": False,
        "mode": "lines" if points > DENSE_ROUNDS else "lines+markers",
        "line": {"color": _colour(index), "width": 2.25, "dash": DASHES[index // len(PALETTE) % len(DASHES)]},
        "marker": {"size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
    }


def _layout(entries: int, height: int = 400) -> dict[str, Any]:
    """What all figures share; `entries` is the number of names in the legend, which needs no room for one."""
    return {
        "template": "none",
        "height": height + (26 * (entries // 4) if entries > 1 else 0),
        "showlegend": entries > 1,
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "title": None,
        },
        "margin": {"l": 8, "r": 24, "t": 24, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"automargin": True, "zeroline": False, "title": {"standoff": 12}},
        "yaxis": {"automargin": True, "zeroline": False, "title": {"standoff": 12}},
        "dragmode": False,
    }


def _group_bytes(run: RunSummary, way: Direction, group: str) -> int:
    return run.group_bytes.get((way, group), 0)


def _position(group: str) -> int:
    return GROUPS.index(group) if group in GROUPS else len(GROUPS)


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _distinct(names: Sequence[str]) -> list[str]:
    """Names as safe labels; a repeated name gets its number, since plotly would merge the two categories."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return [safe(name) if seen[name] == 1 else f"{safe(name)} ({index})" for index, name in enumerate(names)]

"""The figures of a study: accuracy by bytes, the front, the difference to the reference, the gap along an axis, cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedadapt.report.figures import PALETTE
from fedadapt.report.plate import Plate, axis_of_bytes, colour, dash, height_of, legend, marker, panels
from fedadapt.report.study import Arm, Group, Spread, StudyResults
from fedadapt.report.tables import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plates(study: StudyResults) -> Iterator[Plate]:
    """The figures that a study has the numbers for."""
    if study.document["design"] == "one at a time":
        yield from (
            _values(study, axis, group)
            for axis, values in study.axes.items()
            if len(values) > 1 and (group := study.along(axis)) is not None
        )
        return
    # Colours with lines: so many are told apart.
    if len(study.values) <= 3 * len(PALETTE):
        yield _curves(study)
    yield _front(study)
    if study.reference is not None and study.claimed:
        yield _differences(study)
    for axis in study.document["report"]["along"]:
        yield _along(study, axis)
    yield _cost(study)


def _curves(study: StudyResults) -> Plate:
    def draw(figure: Figure, theme: dict[str, str]) -> None:
        for axes, group in panels(figure, titled(_run(study))):
            for index, value in _present(study, group):
                curve = [point for point in group.arms[value].curve() if point[0]]
                if not curve:
                    continue
                moved, mean, low, high = (list(column) for column in zip(*curve, strict=True))
                axes.plot(
                    [b / 2**20 for b in moved], [100 * a for a in mean], label=value, color=colour(index),
                    linestyle=dash(index), marker=marker(index), markevery=[-1],
                )  # fmt: skip
                axes.fill_between(
                    [b / 2**20 for b in moved], [100 * a for a in low], [100 * a for a in high],
                    color=colour(index), alpha=0.18, linewidth=0,
                )  # fmt: skip
            axis_of_bytes(axes)
            axes.set_ylabel("accuracy, %")
        legend(figure, theme)

    rows = [
        (*group.labels.values(), value, moved, mean, low, high)
        for group in study.groups
        for _, value in _present(study, group)
        for moved, mean, low, high in group.arms[value].curve()
    ]
    return Plate(
        "accuracy-by-bytes",
        "Accuracy by bytes moved",
        "Mean over the seeds, with the least and the largest as a band; bytes of all clients, both ways, without the "
        "backbone that every party has before the first round.",
        draw,
        height_of(len(_run(study)), study.values),
        (*study.others, study.compare, "bytes", "accuracy", "least", "largest"),
        rows,
    )


def _front(study: StudyResults) -> Plate:
    def draw(figure: Figure, theme: dict[str, str]) -> None:
        for axes, group in panels(figure, titled(_run(study))):
            points = _points(study, group)
            front = front_of([(moved, accuracy) for _, _, moved, accuracy, _ in points])
            if len(front) > 1:
                axes.plot(*zip(*front, strict=True), color=theme["muted"], linewidth=1.2, zorder=1)
            for index, value, moved, accuracy, deviation in points:
                axes.errorbar(
                    moved, accuracy, yerr=deviation, color=colour(index), marker=marker(index),
                    linestyle="none", capsize=3, label=value, markersize=8,
                )  # fmt: skip
            axes.margins(x=0.12, y=0.14)
            axis_of_bytes(axes)
            axes.set_ylabel("final accuracy, %")
        legend(figure, theme)

    return Plate(
        "pareto",
        "Final accuracy against bytes",
        "The line is the front: nothing else is as accurate for as few bytes. Bars are one standard deviation over seeds.",
        draw,
        height_of(len(_run(study)), study.values),
        (*study.others, study.compare, "MiB", "accuracy, %", "deviation"),
        [
            (*group.labels.values(), value, moved, accuracy, deviation)
            for group in study.groups
            for _, value, moved, accuracy, deviation in _points(study, group)
        ],
    )


def front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats: fewer bytes at as much accuracy, or more accuracy at as few bytes.

    Args:
        points: bytes and accuracy.

    Example:
        >>> front_of([(1, 50), (2, 40), (3, 60), (4, 60)])
        [(1, 50), (3, 60)]
    """
    front: list[tuple[float, float]] = []
    for moved, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((moved, accuracy))
    return front


def _differences(study: StudyResults) -> Plate:
    allowed, groups = float(study.document["report"]["points"]), _run(study)
    found = [
        (row, group, index, value, difference)
        for row, group in enumerate(groups)
        for index, value in enumerate(study.claimed)
        if (difference := group.difference(value)) is not None
    ]

    def draw(figure: Figure, theme: dict[str, str]) -> None:
        axes = figure.subplots()
        axes.axvspan(-allowed, allowed, color=theme["band"], alpha=0.12, linewidth=0)
        axes.axvline(0, color=theme["muted"], linewidth=1)
        step = 0.7 / max(1, len(study.claimed))
        for row, _, index, value, difference in found:
            y = row + (index - (len(study.claimed) - 1) / 2) * step
            place = study.values.index(value)
            axes.plot(
                difference.points,
                [y] * len(difference.points),
                "|",
                color=colour(place),
                markersize=9,
                alpha=0.7,
            )
            axes.errorbar(
                difference.spread.mean, y, xerr=difference.spread.deviation, color=colour(place), marker=marker(place),
                markersize=7, capsize=3, linestyle="none", label=value,
            )  # fmt: skip
        axes.set_yticks(range(len(groups)), [group.title or "all" for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"points of accuracy, less {study.reference}")
        legend(figure, theme)

    return Plate(
        "difference",
        f"Difference to {study.reference}",
        f"Points of accuracy, seed by seed (strokes), their mean and one standard deviation; the band is {allowed:g} points.",
        draw,
        1.2 + 0.42 * len(groups) * max(1, len(study.claimed) / 2),
        (*study.others, study.compare, "points", "deviation", "p of a paired t-test", "share of bytes"),
        [
            (*g.labels.values(), value, d.spread.mean, d.spread.deviation, d.p, d.share)
            for _, g, _, value, d in found
        ],
    )


def _along(study: StudyResults, axis: str) -> Plate:
    lines: dict[str, list[tuple[str, Group]]] = {}
    for group in study.groups:
        rest = ", ".join(value for name, value in group.labels.items() if name != axis)
        lines.setdefault(rest, []).append((group.labels[axis], group))

    def draw(figure: Figure, theme: dict[str, str]) -> None:
        for axes, steps in panels(figure, list(lines.items())):
            for index, value in enumerate(study.values):
                points = [(n, _accuracy(group, value)) for n, (_, group) in enumerate(steps)]
                known = [(n, spread) for n, spread in points if spread is not None]
                if known:
                    axes.errorbar(
                        [n for n, _ in known], [100 * s.mean for _, s in known],
                        yerr=[100 * s.deviation for _, s in known], color=colour(index), label=value,
                        marker=marker(index), linestyle=dash(index), capsize=3,
                    )  # fmt: skip
            axes.set_xticks(
                range(len(steps)), [name for name, _ in steps], rotation=20 if len(steps) > 3 else 0
            )
            axes.set_ylabel("final accuracy, %")
        legend(figure, theme)

    return Plate(
        f"along-{axis}",
        f"Accuracy along {axis}",
        "Mean over the seeds and one standard deviation.",
        draw,
        height_of(len(lines)),
        (*study.others, study.compare, "accuracy", "deviation"),
        [
            (*group.labels.values(), value, spread.mean, spread.deviation)
            for group in study.groups
            for value in study.values
            if (spread := _accuracy(group, value)) is not None
        ],
    )


def _cost(study: StudyResults) -> Plate:
    spent = []
    for value in study.values:
        seconds = [
            run.cpu_s / max(1, run.rounds)
            for group in study.groups
            if value in group.arms
            for run in group.arms[value].runs.values()
        ]
        if seconds:
            spent.append((study.values.index(value), value, sum(seconds) / len(seconds)))

    def draw(figure: Figure, theme: dict[str, str]) -> None:
        del theme
        axes = figure.subplots()
        for row, (index, _, seconds) in enumerate(spent):
            axes.barh(row, seconds, color=colour(index), height=0.62)
            axes.annotate(f" {seconds:.3g} s", (seconds, row), va="center")
        axes.set_yticks(range(len(spent)), [value for _, value, _ in spent])
        axes.set_ylim(len(spent) - 0.5, -0.5)
        axes.margins(x=0.15)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("processor seconds a round, all clients and measuring")

    return Plate(
        "cost",
        "Compute",
        "Mean over all cells; what a round costs includes measuring where that was done.",
        draw,
        1.1 + 0.42 * len(spent),
        (study.compare, "processor seconds a round"),
        [(value, seconds) for _, value, seconds in spent],
    )


def _values(study: StudyResults, axis: str, group: Group) -> Plate:
    known = [(value, arm) for value in study.axes[axis] if (arm := group.arms.get(value)) and arm.runs]

    def draw(figure: Figure, theme: dict[str, str]) -> None:
        axes = figure.subplots()
        for row, (value, arm) in enumerate(known):
            spread = arm.accuracy
            if spread is None:
                continue
            first = value == study.axes[axis][0]
            if first:
                axes.axvline(100 * spread.mean, color=theme["muted"], linewidth=1, zorder=0)
            found = [100 * run.accuracy for run in arm.runs.values() if run.accuracy is not None]
            axes.plot(found, [row] * len(found), "|", color=colour(0), markersize=9, alpha=0.7)
            axes.errorbar(
                100 * spread.mean, row, xerr=100 * spread.deviation, color=colour(1 if first else 0),
                marker=marker(1 if first else 0), markersize=8, capsize=3, linestyle="none",
            )  # fmt: skip
        axes.set_yticks(range(len(known)), [f"{value}\n{_moved(arm)}" for value, arm in known])
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("final accuracy, %")

    return Plate(
        f"axis-{axis}",
        axis.replace("_", " ").replace("-", " ").capitalize(),
        "Seed by seed (strokes), mean and one standard deviation, with the bytes moved; the square and the line are the "
        "value that the other axes are varied around.",
        draw,
        1.1 + 0.62 * len(known),
        (axis, "accuracy", "deviation", "bytes", "p of a paired t-test"),
        [
            (value, s.mean, s.deviation, arm.moved.mean if arm.moved else None, d.p if d else None)
            for value, arm in known
            if (s := arm.accuracy) is not None
            for d in (group.difference(value),)
        ],
    )


def _moved(arm: Arm) -> str:
    return format_bytes(round(arm.moved.mean)) if arm.moved else ""


def _points(study: StudyResults, group: Group) -> list[tuple[int, str, float, float, float]]:
    """Of each arm its place among the values, its name, MiB moved, accuracy in percent, and its deviation."""
    return [
        (index, value, arm.moved.mean / 2**20, 100 * spread.mean, 100 * spread.deviation)
        for index, value in _present(study, group)
        if (arm := group.arms[value]).moved is not None and (spread := arm.accuracy) is not None
    ]


def _run(study: StudyResults) -> list[Group]:
    """The groups of which something was run; others would be empty panels."""
    return [group for group in study.groups if _present(study, group)]


def _present(study: StudyResults, group: Group) -> list[tuple[int, str]]:
    """The values that a group has runs of, each with its place among all values."""
    return [
        (index, value)
        for index, value in enumerate(study.values)
        if value in group.arms and group.arms[value].runs
    ]


def _accuracy(group: Group, value: str) -> Spread | None:
    return group.arms[value].accuracy if value in group.arms else None


def titled(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    """Groups with their titles."""
    return [(group.title, group) for group in groups]

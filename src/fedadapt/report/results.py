"""The page of a study: tables, still figures with their numbers beside them, and how to run a cell again."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedadapt.report.document import write_text
from fedadapt.report.plate import Plate, write_plate
from fedadapt.report.plates import plates
from fedadapt.report.study import SEED, TARGETS, Arm, Group, StudyResults, read_study, signed_rank
from fedadapt.report.tables import NOT_GLOBAL, UNKNOWN, format_bytes, format_seconds
from fedadapt.runs.results import RESULTS, AccuracyOf, Results, Status

PAGE, CELLS = "README.md", "cells.csv"


def write_results(file: Path, folder: Path) -> Path:
    """Writes the tables and figures of a results file into a folder, and a copy of the file beside them.

    The copy is all that is needed to write the folder again.

    Returns:
        The page.

    Raises:
        RunError: the results are missing, damaged or empty, or the folder cannot be written.
    """
    study = read_study(file)
    drawn = list(plates(study))
    for plate in drawn:
        write_plate(plate, folder)
    write_text(folder / CELLS, _cells(study))
    if file.resolve() != (folder / RESULTS).resolve():
        with Results.read(file) as results:
            results.copy(folder / RESULTS)
    return write_text(folder / PAGE, "\n".join(_page(study, drawn, folder)) + "\n")


def _page(study: StudyResults, drawn: Sequence[Plate], folder: Path) -> Iterator[str]:
    name = study.document["name"]
    done = sum(place.digest in study.summaries for place in study.grid)
    yield f"# {study.title}"
    yield ""
    seeds = {place.labels[SEED] for place in study.grid if place.digest in study.summaries}
    yield (
        f"{done} of {len(study.grid)} cells of `{name}.toml` that are in the grid so far, "
        f"{len(seeds)} of {len(study.document['seeds'])} seeds{_with(study)}. {_origin(study)} "
        f"Written by `fedadapt results`; every cell is in [{CELLS}]({CELLS}), and whole in [{RESULTS}]({RESULTS})."
    )
    yield ""
    if any(run.accuracy_of is not AccuracyOf.GLOBAL for run in study.summaries.values()):
        yield f"{NOT_GLOBAL} What is not of the same models has no difference."
        yield ""
    if study.document["design"] == "one at a time":
        for axis, values in study.axes.items():
            if len(values) > 1 and (group := study.along(axis)) is not None:
                yield from _one_axis(axis, values, group)
                yield from (
                    line for plate in drawn if plate.name == f"axis-{axis}" for line in _picture(plate)
                )
    else:
        yield from _claim(study)
        yield from _accuracy(study)
        for plate in drawn:
            yield f"## {plate.title}"
            yield ""
            yield from _picture(plate)
        yield from _targets(study)
    yield from _search(study)
    yield from _failures(study)
    yield from _again(study, folder)


def _again(study: StudyResults, folder: Path) -> Iterator[str]:
    """The commands, for where the study and this folder lay when it was written; of places elsewhere, the last name."""
    inside = not folder.is_absolute() and ".." not in folder.parts
    place = folder.as_posix() if inside else folder.resolve().name
    given = [word for setting in study.document.get("given", []) for word in ("--set", setting)]
    study_file = study.document.get("file", f"studies/{study.document['name']}.toml")
    check = ["--cell", "1", "--check", f"{place}/{RESULTS}"]
    yield "## Run a cell again"
    yield ""
    yield "```"
    yield shlex.join(["fedadapt", "study", study_file, *given, *check])
    yield f"fedadapt results {place}/{RESULTS} {place}"
    yield "```"
    yield ""
    yield "The first runs cell 1 with the rates found here and compares; the second writes this folder again."


def _with(study: StudyResults) -> str:
    """What was set beside the study file."""
    given = study.document.get("given")
    return f", with {', '.join(f'`{setting}`' for setting in given)}" if given else ""


def _origin(study: StudyResults) -> str:
    """What the cells ran on."""
    seen: dict[str, None] = {}
    for run in study.summaries.values():
        device = run.noted("hardware", "device", default="cpu")
        machine = run.noted("hardware", "processor", default="unknown") if device == "cpu" else device
        seen[f"{machine}, torch {run.noted('versions', 'torch', default='unknown')}"] = None
    return f"Run on {'; '.join(seen)}."


def _claim(study: StudyResults) -> Iterator[str]:
    """The claim, counted, and the test over all rows."""
    report = study.document["report"]
    for value in study.claimed:
        found = [d for group in study.groups if (d := group.difference(value)) is not None]
        failed = sum(group.failed(value) for group in study.groups)
        if not (found or failed):
            continue
        means = [round(d.spread.mean, 9) for d in found]
        kept = sum(
            mean >= -report["points"] and d.share <= report["share"]
            for mean, d in zip(means, found, strict=True)
        )
        told = (
            f"**{value}**: no more than {report['points']:g} points below {study.reference}, at no more than "
            f"{100 * report['share']:g} % of the bytes, in {kept} of {len(found) + failed} rows"
            + (f", in {failed} of which it failed" if failed else "")
            + (f"; mean difference {sum(means) / len(means):+.2f} points" if means else "")
        )
        if len(means) > 5 and (p := signed_rank(means)) is not None:
            told += f" (Wilcoxon signed-rank test over the rows, two-sided: p = {p:.2g})"
        yield f"{told}."
        yield ""


def _accuracy(study: StudyResults) -> Iterator[str]:
    yield "## Accuracy and bytes"
    yield ""
    yield (
        "Final accuracy in percent, mean ± standard deviation over the seeds. "
        + (
            f"The difference is against {study.reference}, in points, seed by seed, with p of a two-sided paired t-test; "
            "no p means a single seed, or the same difference at every one. Seeds that failed are not in the means."
            if study.reference
            else ""
        )
    ).strip()
    yield ""
    heads = [*study.others, study.compare, "accuracy", "difference", "p", "moved", "share", "seeds"]
    rows = []
    for group in study.groups:
        for value in study.values:
            arm = group.arms.get(value)
            if arm is None:
                continue
            difference = None if value == study.reference else group.difference(value)
            spread = None if difference is None else difference.spread
            rows.append(
                [
                    *group.labels.values(),
                    value,
                    _percent(arm),
                    UNKNOWN
                    if spread is None
                    else f"{spread.mean:+.2f}" + _deviation(spread.deviation, spread.count),
                    UNKNOWN if difference is None or difference.p is None else f"{difference.p:.2g}",
                    UNKNOWN if arm.moved is None else format_bytes(round(arm.moved.mean)),
                    UNKNOWN if difference is None else f"{100 * difference.share:.3g} %",
                    f"{len(arm.runs)} of {len(arm.runs) + len(arm.reasons)}"
                    if arm.reasons
                    else str(len(arm.runs)),
                ]
            )
    yield from _table(heads, rows)


def _targets(study: StudyResults) -> Iterator[str]:
    if study.reference is None:
        return
    yield "## Bytes to a target"
    yield ""
    yield (
        f"Bytes moved, all clients and both ways, when the mean accuracy over the seeds first reaches a share of the "
        f"final accuracy of {study.reference}; in brackets how many times fewer than {study.reference} needed for the same."
    )
    yield ""
    rows = []
    for group in study.groups:
        targets = group.targets()
        for value in study.values if targets else ():
            if value in group.arms and group.arms[value].runs and group.alike(value):
                cells = [_reached(group, value, target) for target in targets]
                rows.append([*group.labels.values(), value, *cells])
    yield from _table([*study.others, study.compare, *(f"{100 * share:g} %" for share in TARGETS)], rows)


def _reached(group: Group, value: str, target: float) -> str:
    needed = group.arms[value].bytes_to(target)
    if needed is None:
        return "not reached"
    reference = None if group.reference is None else group.arms[group.reference].bytes_to(target)
    if value == group.reference or not reference or not needed:
        return format_bytes(round(needed))
    times = reference / needed
    return (
        f"{format_bytes(round(needed))} ({times:,.0f}x)"
        if times >= 100
        else f"{format_bytes(round(needed))} ({times:.3g}x)"
    )


def _one_axis(axis: str, values: Sequence[str], group: Group) -> Iterator[str]:
    yield f"## {axis.replace('_', ' ').replace('-', ' ').capitalize()}"
    yield ""
    rows = []
    for value in values:
        arm = group.arms.get(value)
        if arm is None:
            continue
        difference = None if value == group.reference else group.difference(value)
        rows.append(
            [
                value,
                _percent(arm),
                UNKNOWN
                if difference is None
                else f"{difference.spread.mean:+.2f}"
                + _deviation(difference.spread.deviation, difference.spread.count),
                UNKNOWN if difference is None or difference.p is None else f"{difference.p:.2g}",
                UNKNOWN if arm.moved is None else format_bytes(round(arm.moved.mean)),
                UNKNOWN if arm.cpu_s is None else format_seconds(arm.cpu_s.mean),
            ]
        )
    yield from _table([axis, "accuracy", f"less {group.reference}", "p", "moved", "processor time"], rows)


def _search(study: StudyResults) -> Iterator[str]:
    """What was tried, and what won; a winner at the end of the list may not be the best there is."""
    search = study.document.get("search")
    if search is None:
        return
    key, per = search["key"], search["per"]
    tried: dict[tuple[str, ...], dict[str, float]] = {}
    unfinished: set[tuple[str, ...]] = set()
    for place in study.places:
        if place.stage == "search":
            group = tuple(place.labels[axis] for axis in per)
            scores, cell = tried.setdefault(group, {}), study.cells.get(place.digest)
            if cell is None or cell.status is Status.BROKEN:
                unfinished.add(group)
            if cell is not None and cell.status is Status.DONE and cell.accuracy is not None:
                scores[place.labels[key]] = cell.accuracy
    if not any(tried.values()):
        return
    order = [f"{value:g}" for value in search["values"]]
    yield f"## The search for {key}"
    yield ""
    yield "Validation accuracy of each value after its short run, in percent; an arrow marks a best value at the end of the list."
    yield ""
    rows = []
    for group, scores in tried.items():
        if not scores:
            continue
        best = max(range(len(order)), key=lambda index: scores.get(order[index], -1.0))
        edge = "" if len(order) == 1 else " ←" if best == 0 else " →" if best == len(order) - 1 else ""
        cells = [f"{100 * scores[value]:.2f}" if value in scores else UNKNOWN for value in order]
        rows.append([*group, *cells, UNKNOWN if group in unfinished else order[best] + edge])
    yield from _table([*per, *order, "picked"], rows)


def _failures(study: StudyResults) -> Iterator[str]:
    failed = [
        (place, study.cells[place.digest])
        for place in study.places
        if place.digest in study.cells and study.cells[place.digest].status is not Status.DONE
    ]
    if not failed:
        return
    yield "## What did not work"
    yield ""
    for place, cell in failed:
        yield f"- {place.stage} {' '.join(f'{k}={v}' for k, v in place.labels.items())}: {cell.reason}"
    yield ""


def _picture(plate: Plate) -> Iterator[str]:
    yield plate.note
    yield f"Numbers: [{plate.name}.csv]({plate.name}.csv)."
    yield ""
    yield "<picture>"
    yield f'  <source media="(prefers-color-scheme: dark)" srcset="{plate.name}-dark.svg">'
    yield f'  <img alt="{plate.title}" src="{plate.name}-light.svg">'
    yield "</picture>"
    yield ""


def _cells(study: StudyResults) -> str:
    """Every cell as a line of CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [
        "cell",
        *study.axes,
        SEED,
        "status",
        "accuracy",
        "best_accuracy",
        "upload_bytes",
        "download_bytes",
    ]
    writer.writerow([*heads, "rounds", "wall_s", "cpu_s", "digest", "reason"])
    for place in study.grid:
        run, cell = study.summaries.get(place.digest), study.cells.get(place.digest)
        told: list[object] = [""] * 7
        if run is not None:
            told = [run.accuracy, run.best_accuracy, run.upload_bytes, run.download_bytes, run.rounds]
            told += [f"{run.wall_s:.1f}", f"{run.cpu_s:.1f}"]
        status = "not run" if cell is None else str(cell.status)
        reason = "" if cell is None else cell.reason
        writer.writerow([place.number, *place.labels.values(), status, *told, place.digest, reason])
    return text.getvalue()


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _percent(arm: Arm) -> str:
    spread = arm.accuracy
    if spread is None:
        return "failed" if arm.reasons else "not run"
    return f"{100 * spread.mean:.2f}" + _deviation(100 * spread.deviation, spread.count)


def _deviation(deviation: float, count: int) -> str:
    return f" ± {deviation:.2f}" if count > 1 else ""

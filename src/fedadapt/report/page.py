"""The report: one HTML page about one or more runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedadapt.errors import ConfigError
from fedadapt.report import figures
from fedadapt.report.accuracy import accuracy_sections, measure_section, measured_on, target_section
from fedadapt.report.document import (
    Html,
    document,
    element,
    facts,
    figure,
    folded,
    markup,
    section,
    table,
    write_text,
)
from fedadapt.report.gather import Condition, RunSummary, labels, summarise
from fedadapt.report.partition import holdings
from fedadapt.report.tables import (
    RELATIVE,
    UNKNOWN,
    compare_columns,
    compare_note,
    format_accuracy,
    format_bytes,
    format_seconds,
)
from fedadapt.report.targets import USUAL
from fedadapt.runs.records import Direction


def write_page(
    runs: Sequence[Path],
    out: Path,
    *,
    live_s: int | None = None,
    targets: Sequence[str] = USUAL,
    reference: str | None = None,
) -> Path:
    """Writes the report of the runs in `runs` to the file `out`, at once or not at all.

    Args:
        runs: run directories; they may still be going on.
        out: the HTML file; it is replaced.
        live_s: the open page reads itself again after so many seconds, until every run is finished.
        targets: accuracies to tell the rounds and bytes to; see `make_targets`.
        reference: likewise.

    Returns:
        `out`.

    Raises:
        ConfigError: there are no runs, or a target is none.
        RunError: a run is missing, damaged or has no committed round, or `out` cannot be written.
    """
    if not runs:
        raise ConfigError("a report needs at least one run directory, got none; name one")
    found = [summarise(path) for path in runs]
    return write_text(out, render(found, live_s=live_s, targets=targets, reference=reference))


def render(
    runs: Sequence[RunSummary],
    *,
    live_s: int | None = None,
    targets: Sequence[str] = USUAL,
    reference: str | None = None,
) -> str:
    """The report as one HTML document; arguments as for `write_page`."""
    names = labels(runs)
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs compared"
    header = [element("h1", title), element("p", _lead(runs), class_="lead")]
    if len(runs) == 1:
        header.append(_key_numbers(runs[0]))
    body = [
        _summary(runs),
        *accuracy_sections(runs),
        *target_section(runs, targets, reference),
        *measure_section(runs),
        _bytes(runs),
        *_clients(runs),
        *_plans(runs),
        _settings(runs),
    ]
    going_on = any(not run.finished for run in runs)
    return document(f"{title} – fedadapt", header, body, refresh_s=live_s if going_on else None)


def _lead(runs: Sequence[RunSummary]) -> str:
    """What was trained on what; several runs name every value that occurs."""
    parts = {
        "backbone": [str(run.noted("backbone", "name", default=UNKNOWN)) for run in runs],
        "adapter": [run.adapter for run in runs],
        "algorithm": [run.algorithm for run in runs],
        "data": [str(run.noted("data", "name", default=UNKNOWN)) for run in runs],
    }
    return " · ".join(f"{name} {', '.join(dict.fromkeys(values))}" for name, values in parts.items())


def _key_numbers(run: RunSummary) -> Html:
    of_planned = "" if run.finished else f" of {run.planned_rounds}"
    left = run.time_left_s if run.condition is Condition.RUNNING else None
    return facts(
        [
            (f"accuracy, {measured_on([run])}", format_accuracy(run.accuracy)),
            ("bytes moved, both ways", format_bytes(run.total_bytes)),
            ("backbone, for a client without it", format_bytes(run.once_bytes)),
            (f"rounds, {run.condition}", f"{run.rounds}{of_planned}"),
            ("time", format_seconds(run.wall_s)),
            *([] if left is None else [("time left", format_seconds(left))]),
        ]
    )


def _summary(runs: Sequence[RunSummary]) -> Html:
    run, adapter, algorithm, *columns = compare_columns(runs)
    if len(runs) == 1:
        columns = [column for column in columns if column.title not in RELATIVE]
    names = [
        markup(name, element("small", f"{adapter}, {algorithm}"))
        for name, adapter, algorithm in zip(run.cells, adapter.cells, algorithm.cells, strict=True)
    ]
    return section(
        "Summary",
        table(
            f"Accuracy on the {measured_on(runs)}, bytes and time",
            [run.title, *(column.title for column in columns)],
            zip(names, *(column.cells for column in columns), strict=True),
            numeric=[False, *(column.numeric for column in columns)],
        ),
        note=compare_note(runs),
    )


def _bytes(runs: Sequence[RunSummary]) -> Html:
    title, groups = "What moved", figures.groups_seen(runs)
    if not groups:
        return section(title, note="Nothing has moved yet.")
    rows = [
        (
            f"{name}, {way}",
            *(format_bytes(run.group_bytes.get((way, group), 0)) for group in groups),
            format_bytes(run.upload_bytes if way is Direction.UPLOAD else run.download_bytes),
        )
        for name, run in zip(labels(runs), runs, strict=True)
        for way in Direction
    ]
    note = "Every byte on the wire by what it holds, over all clients and rounds. Framing is headers and checksums."
    if figures.bars_are_shares(runs):
        note += (
            " The bars differ too much to share an axis in bytes: each is drawn as shares of its own total."
        )
    return section(
        title,
        figure(
            "bytes-by-group",
            figures.bytes_by_group(runs),
            "Stacked bars of the bytes that each run downloaded and uploaded, by group of tensors.",
            table("Bytes by direction and group", ["run", *map(figures.group_title, groups), "total"], rows),
        ),
        note=note,
    )


def _clients(runs: Sequence[RunSummary]) -> Iterator[Html]:
    maps: list[Html] = []
    held = _shared(runs, lambda run: (run.label_counts, run.class_names) if run.label_counts else None)
    for number, ((counts, class_names), holders) in enumerate(held):
        if len(holders) < len(runs):
            maps.append(element("h3", ", ".join(holders)))
        maps.append(holdings(f"holdings-{number}", counts, class_names))
    if maps:
        yield section("Who holds what", *maps, note="Training samples of each class on each client.")
    if any(run.client_accuracy for run in runs):
        rows = [
            (name, f"client {client}", format_accuracy(accuracy))
            for name, run in zip(labels(runs), runs, strict=True)
            for client, accuracy in sorted(run.client_accuracy.items())
        ]
        yield section(
            "Accuracy by client",
            figure(
                "accuracy-by-client",
                figures.accuracy_by_client(runs),
                f"Distribution of the clients' own accuracies. {_extremes(runs)}",
                table("Accuracy by client, as last measured", ["run", "client", "accuracy"], rows),
            ),
            note="The model each client would use, on its own held-out samples; one point a client.",
        )


def _plans(runs: Sequence[RunSummary]) -> Iterator[Html]:
    plans = _shared(runs, lambda run: run.noted("plan"))
    if not plans:
        return
    tables = [
        table(
            f"Exchange plan of {', '.join(holders)}",
            ["group", "trained", "travels", "values", "bytes"],
            [
                (
                    figures.group_title(str(row.get("group", UNKNOWN))),
                    _word(row.get("trained")),
                    _word(row.get("travels")),
                    f"{int(row.get('values') or 0):,}",
                    format_bytes(int(row.get("bytes") or 0)),
                )
                for row in plan
            ],
            numeric=[False, False, False, True, True],
        )
        for plan, holders in plans
    ]
    yield section(
        "Exchange plan",
        *tables,
        note="Which tensors are trained, and which travel, agreed before the first round. "
        "Bytes are of one message as fp32, before any codec.",
    )


def _shared(runs: Sequence[RunSummary], part: Callable[[RunSummary], Any]) -> list[tuple[Any, list[str]]]:
    """The distinct values of a part of the runs, each with the names of the runs that have it."""
    found: list[tuple[Any, list[str]]] = []
    for name, run in zip(labels(runs), runs, strict=True):
        value = part(run)
        if value is None:
            continue
        holders = next((names for known, names in found if known == value), None)
        if holders is None:
            found.append((value, [name]))
        else:
            holders.append(name)
    return found


def _settings(runs: Sequence[RunSummary]) -> Html:
    """Everything that is needed to run each run again."""
    return section(
        "Settings",
        *(
            folded(
                name,
                table("Run", (), _pairs(_origin(run)), kind="settings"),
                *(
                    table(caption, (), _pairs(run.noted(key)), kind="settings")
                    for key, caption in (
                        ("config", "Configuration"),
                        ("backbone", "Backbone"),
                        ("versions", "Versions"),
                        ("hardware", "Hardware"),
                    )
                    if run.noted(key)
                ),
                class_="run",
            )
            for name, run in zip(labels(runs), runs, strict=True)
        ),
    )


def _origin(run: RunSummary) -> dict[str, Any]:
    return {
        "directory": run.path,
        "started": run.noted("created_at", default=UNKNOWN),
        "seed": UNKNOWN if run.seed is None else run.seed,
        "rounds": f"{run.rounds} of {run.planned_rounds}",
        "wall time": format_seconds(run.wall_s),
        "processor time": format_seconds(run.cpu_s),
        "answers of clients": ", ".join(f"{count} {outcome}" for outcome, count in run.outcomes.items())
        or UNKNOWN,
    }


def _pairs(entry: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys with their values."""
    if isinstance(entry, Mapping):
        for key, value in entry.items():
            yield from _pairs(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, _word(entry)


def _word(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _extremes(runs: Sequence[RunSummary]) -> str:
    parts = []
    for name, run in zip(labels(runs), runs, strict=True):
        if run.client_accuracy:
            values = run.client_accuracy.values()
            mean, worst = sum(values) / len(values), min(values)
            parts.append(f"{name}: mean {format_accuracy(mean)}, worst {format_accuracy(worst)}")
    return f"{'; '.join(parts)}."

"""The part of a page that says how good models are: curves, targets and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fedadapt.report import figures
from fedadapt.report.document import Html, figure, section, table
from fedadapt.report.gather import RunSummary, labels
from fedadapt.report.measures import drift_columns, measure_columns
from fedadapt.report.tables import UNKNOWN, Column, format_accuracy, format_bytes
from fedadapt.report.targets import make_targets, target_columns, target_note
from fedadapt.runs.results import AccuracyOf


def measured_on(runs: Sequence[RunSummary]) -> str:
    """Which split, and which models, accuracy and loss are of."""
    of = {
        AccuracyOf.GLOBAL: "{}",
        AccuracyOf.AT_CLIENTS: "clients' own held-out samples, in the mean",
        AccuracyOf.OWN: "clients' own held-out samples with their own models, in the mean",
        AccuracyOf.PART: "{} with the shared part alone, which is nobody's model",
    }
    return " or ".join(dict.fromkeys(of[run.accuracy_of].format(_split(run)) for run in runs))


def _split(run: RunSummary) -> str:
    named = {"test": "global test set", "validation": "validation split"}
    split = str(run.noted("data", "measured_on", default="test"))
    return named.get(split, split)


def accuracy_sections(runs: Sequence[RunSummary]) -> Iterator[Html]:
    """Curves of accuracy and loss by round and by bytes."""
    names, split = labels(runs), measured_on(runs)
    if any(run.accuracy_by_round for run in runs):
        yield section(
            "Accuracy by round",
            figure(
                "accuracy-by-round",
                figures.accuracy_by_round(runs),
                f"Line chart of accuracy by round: {_ends(runs)}",
                table(
                    f"Accuracy on the {split}, by round",
                    ["round", *names],
                    _by_round([run.accuracy_by_round for run in runs], _percent),
                ),
            ),
            note=f"On the {split}. Round 0 is the model before any training.",
        )
        yield _accuracy_by_bytes(runs)
    if any(run.loss_by_round for run in runs):
        yield section(
            "Loss by round",
            figure(
                "loss-by-round",
                figures.loss_by_round(runs),
                f"Line chart of the loss on the {split} by round.",
                table(
                    f"Loss on the {split}, by round",
                    ["round", *names],
                    _by_round([run.loss_by_round for run in runs], "{:.4f}".format),
                ),
            ),
            note=f"On the {split}.",
        )


def target_section(runs: Sequence[RunSummary], asked: Sequence[str], reference: str | None) -> Iterator[Html]:
    """Rounds and bytes to each target, if there is one; arguments as for `make_targets`."""
    targets = make_targets(asked, runs, reference)
    if targets:
        columns = columns_table("When each run was first that accurate", target_columns(runs, targets))
        yield section("Rounds and bytes to a target", columns, note=target_note(targets, reference))


def measure_section(runs: Sequence[RunSummary]) -> Iterator[Html]:
    """Every metric as last measured, and drift, if there are any."""
    parts = [
        columns_table(caption, columns)
        for caption, columns in (
            ("Every metric, as last measured", measure_columns(runs)),
            ("Drift of the clients' updates in the last round", drift_columns(runs)),
        )
        if any(cell != UNKNOWN for column in columns if column.numeric for cell in column.cells)
    ]
    splits = dict.fromkeys(_split(run) for run in runs if run.noted("data", "test") != 0)
    globally = f"Of the global model on the {' or '.join(splits)}. " if splits else ""
    if parts:
        yield section(
            "Metrics",
            *parts,
            note=f"{globally}Of the model each client would use on its own held-out samples. The worst tenth is the mean of the "
            "worst tenth of the clients, at least of one.",
        )


def columns_table(caption: str, columns: Sequence[Column]) -> Html:
    """Columns of text as a table."""
    rows = zip(*(column.cells for column in columns), strict=True)
    return table(caption, [c.title for c in columns], rows, numeric=[c.numeric for c in columns])


def _accuracy_by_bytes(runs: Sequence[RunSummary]) -> Html:
    title = "Accuracy by bytes moved"
    points = [
        (name, round, format_bytes(moved), _percent(accuracy))
        for name, run in zip(labels(runs), runs, strict=True)
        for round, moved, accuracy in figures.moved_points(run)
    ]
    if not points:
        return section(title, note="Nothing has moved yet.")
    return section(
        title,
        figure(
            "accuracy-by-bytes",
            figures.accuracy_by_bytes(runs),
            f"Line chart of accuracy by bytes moved, on a logarithmic axis: {_ends(runs)}",
            table(
                "Accuracy by bytes moved, both ways and all clients",
                ["run", "round", "moved", "accuracy"],
                points,
            ),
        ),
        note="What each point of accuracy cost: up and left is better. The axis of bytes is logarithmic.",
    )


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f} %"


def _by_round(
    series: Sequence[Mapping[int, float]], write: Callable[[float], str]
) -> Iterator[tuple[object, ...]]:
    for round in sorted({round for values in series for round in values}):
        yield round, *(write(values[round]) if round in values else UNKNOWN for values in series)


def _ends(runs: Sequence[RunSummary]) -> str:
    parts = (
        f"{name} ends at {format_accuracy(run.accuracy)} with {format_bytes(run.total_bytes)} moved"
        for name, run in zip(labels(runs), runs, strict=True)
    )
    return f"{'; '.join(parts)}."

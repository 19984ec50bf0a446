"""All that was measured of models, for people: the global one and those of clients."""

from __future__ import annotations

from collections.abc import Sequence

from fedadapt.report.gather import RunSummary, labels
from fedadapt.report.tables import UNKNOWN, Column, format_accuracy
from fedadapt.runs.results import AccuracyOf

MEASURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "calibration_error": "calibration error",
    "loss": "loss",
}
"""Metrics of a model, with their names for people."""

STATISTICS = {"mean": "mean", "worst": "worst tenth", "std": "deviation", "iqr": "quartiles apart"}
"""Over clients, with their names for people."""

DRIFT = {"delta_norm": "length of updates", "delta_cosine": "cosine to their mean"}
"""Of the updates of a round, likewise."""

PLAIN = ("loss", "delta_norm", "delta_cosine")
"""Written as numbers; all others are shares, written in percent."""


def measure_columns(runs: Sequence[RunSummary]) -> tuple[Column, ...]:
    """Every metric that some run has, as last measured: rows by run and by whom it is of."""
    known = {name for run in runs for name in run.last_metrics}
    names = [name for name in MEASURES if name in known or f"client_{name}_mean" in known]
    rows = [
        (label, who, [f"{prefix}{name}{suffix}" for name in names], run.last_metrics)
        for label, run in zip(labels(runs), runs, strict=True)
        for who, prefix, suffix in _whose(run)
    ]
    return (
        Column("run", False, tuple(label for label, *_ in rows)),
        Column("of", False, tuple(who for _, who, *_ in rows)),
        *(
            Column(
                MEASURES[name], True, tuple(_text(name, known.get(keys[place])) for *_, keys, known in rows)
            )
            for place, name in enumerate(names)
        ),
    )


def drift_columns(runs: Sequence[RunSummary]) -> tuple[Column, ...]:
    """How far apart the clients trained in the last round."""
    return (
        Column("run", False, tuple(labels(runs))),
        *(
            Column(title, True, tuple(_text(name, run.last_metrics.get(name)) for run in runs))
            for name, title in DRIFT.items()
        ),
    )


def _whose(run: RunSummary) -> list[tuple[str, str, str]]:
    """Whom metrics are of, and how their names begin and end."""
    clients = [(f"clients, {title}", "client_", f"_{name}") for name, title in STATISTICS.items()]
    kept = run.accuracy_of in (AccuracyOf.OWN, AccuracyOf.PART)
    found = [((AccuracyOf.PART if kept else AccuracyOf.GLOBAL).value, "", "")]
    # A server without samples has measured nothing itself.
    if run.accuracy_of is AccuracyOf.AT_CLIENTS or not run.last_metrics.keys() & MEASURES.keys():
        found = []
    return [*found, *(clients if "client_accuracy_mean" in run.last_metrics else [])]


def _text(name: str, value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.3f}" if name in PLAIN else format_accuracy(value)

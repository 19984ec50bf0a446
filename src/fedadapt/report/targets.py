"""Rounds and bytes until a run is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedadapt.errors import ConfigError
from fedadapt.report.gather import RunSummary, labels
from fedadapt.report.tables import UNKNOWN, Column, format_accuracy, format_bytes
from fedadapt.runs.results import AccuracyOf

USUAL = ("90%", "95%", "99%")
"""What a page shows unless it is told otherwise."""


@dataclass(frozen=True)
class Target:
    """An accuracy to reach.

    Args:
        asked: as it was asked for.
        accuracy: from 0 to 1.
        of: which models it is of, if it is a share; those that are measured by others do not reach it. None for any.
    """

    asked: str
    accuracy: float
    of: AccuracyOf | None = None


@dataclass(frozen=True)
class Reached:
    """When a run was first as accurate as a target.

    Args:
        round: the first of the rounds that measured accuracy.
        num_bytes: moved until its end, both ways and all clients.
    """

    round: int
    num_bytes: int


def make_targets(
    asked: Sequence[str], runs: Sequence[RunSummary], reference: str | None = None
) -> list[Target]:
    """The accuracies that are meant.

    Args:
        asked: each an accuracy such as ``0.9``, or a share of the best accuracy of any round such as ``95%``.
        runs: those that are compared.
        reference: whose best accuracy shares are of, by its name in the comparison; None for the best of all.

    Returns:
        One for each that is asked for; shares are left out where no run has measured accuracy.

    Raises:
        ConfigError: a target or the name is none.
    """
    names = labels(runs)
    if reference is not None and reference not in names:
        raise ConfigError(f"no run is called {reference!r}; --reference takes one of {', '.join(names)}")
    known = [
        (run.best_accuracy, run.accuracy_of)
        for name, run in zip(names, runs, strict=True)
        if run.best_accuracy is not None and reference in (None, name)
    ]
    targets = []
    for text in asked:
        share, is_share = _number(text)
        if not is_share:
            targets.append(Target(text, share))
        elif known:
            best, of = max(known)
            targets.append(Target(text, share * best, of))
    return targets


def reach(run: RunSummary, target: Target) -> Reached | None:
    """When the run was first that accurate; None if it never was. Later rounds may be worse again."""
    if target.of not in (None, run.accuracy_of):
        return None
    for round, accuracy in sorted(run.accuracy_by_round.items()):
        if accuracy >= target.accuracy:
            return Reached(round, run.upload_by_round[round] + run.download_by_round[round])
    return None


def targets_as_json(run: RunSummary, targets: Sequence[Target]) -> list[dict[str, Any]]:
    """When a run reached each target, as part of ``compare --json``; null for what it did not."""
    found = []
    for target in targets:
        reached = reach(run, target)
        found.append(
            {
                "target": target.asked,
                "accuracy": target.accuracy,
                "round": reached and reached.round,
                "bytes": reached and reached.num_bytes,
            }
        )
    return found


def target_columns(runs: Sequence[RunSummary], targets: Sequence[Target]) -> tuple[Column, ...]:
    """The runs, and for each target the round and the bytes until then, as text."""
    return (
        Column("run", False, tuple(labels(runs))),
        *(Column(_title(target), True, tuple(_cell(run, target) for run in runs)) for target in targets),
    )


def target_note(targets: Sequence[Target], reference: str | None) -> str:
    """What the columns mean, in a sentence or two."""
    note = "The first round that measured this accuracy, and the bytes moved until its end, both ways and all clients."
    if any("%" in target.asked for target in targets):
        of = f"of the best accuracy of {reference}" if reference else "of the best accuracy of any run"
        note += f" Percentages before the colon are {of}."
    return note


def _title(target: Target) -> str:
    accuracy = format_accuracy(target.accuracy)
    return f"{target.asked}: {accuracy}" if "%" in target.asked else accuracy


def _cell(run: RunSummary, target: Target) -> str:
    reached = reach(run, target)
    return UNKNOWN if reached is None else f"round {reached.round}, {format_bytes(reached.num_bytes)}"


def _number(text: str) -> tuple[float, bool]:
    """A target's number from 0 to 1, and whether it is a share."""
    is_share = text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / (100 if is_share else 1)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1:
        raise ConfigError(
            f"a target is an accuracy above 0 and up to 1, such as 0.9, or a share of the best one, such as 95%; got {text!r}"
        )
    return number, is_share

"""A study as its results file tells it: arms to compare, their differences by seed, and the bytes to a target."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedadapt.errors import RunError
from fedadapt.report.gather import RunSummary, summary
from fedadapt.runs.results import CellResult, PlaceResult, Results, Status

SEED = "seed"
TARGETS = (0.90, 0.95, 0.99)
"""Shares of the reference's final accuracy that bytes are counted to."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of some numbers.

    Args:
        mean: of them.
        deviation: 0 of a single one.
        count: how many there are.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of at least one number; None of none.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0])
            Spread(mean=2.0, deviation=1.0, count=3)
        """
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Arm:
    """The runs of one place but for their seeds.

    Args:
        value: of the axis that is compared.
        runs: those that are done, by seed.
        reasons: why others failed, by seed.
    """

    value: str
    runs: Mapping[str, RunSummary]
    reasons: Mapping[str, str]

    @property
    def accuracy(self) -> Spread | None:
        """Final accuracy, 0..1."""
        return Spread.of([run.accuracy for run in self.runs.values() if run.accuracy is not None])

    @property
    def moved(self) -> Spread | None:
        """Bytes both ways."""
        return Spread.of([run.total_bytes for run in self.runs.values()])

    @property
    def cpu_s(self) -> Spread | None:
        """Processor seconds."""
        return Spread.of([run.cpu_s for run in self.runs.values()])

    def curve(self) -> list[tuple[float, float, float, float]]:
        """Mean bytes moved, and mean, least and largest accuracy, after each round that all seeds measured."""
        runs = list(self.runs.values())
        shared = sorted(set.intersection(*(set(run.accuracy_by_round) for run in runs))) if runs else []
        points = []
        for round in shared:
            moved = statistics.fmean(
                run.upload_by_round[round] + run.download_by_round[round] for run in runs
            )
            found = [run.accuracy_by_round[round] for run in runs]
            points.append((moved, statistics.fmean(found), min(found), max(found)))
        return points

    def bytes_to(self, accuracy: float) -> float | None:
        """Bytes moved when the mean over the seeds first reaches an accuracy; None if it never does."""
        return next((moved for moved, mean, _, _ in self.curve() if mean >= accuracy), None)


@dataclass(frozen=True)
class Difference:
    """An arm less the reference, seed by seed.

    Args:
        points: of accuracy, by seed, in percentage points.
        p: of the two-sided paired t-test; None with fewer than two seeds, or where every seed gives the same.
        share: bytes as a share of the reference's, of the same seeds.
    """

    points: tuple[float, ...]
    p: float | None
    share: float

    @property
    def spread(self) -> Spread:
        """Mean and deviation of the points."""
        found = Spread.of(self.points)
        if found is None:
            raise ValueError("a difference has at least one seed")
        return found


@dataclass(frozen=True)
class Group:
    """A row of the tables: the arms that share all values but that of the compared axis.

    Args:
        labels: the value of every other axis.
        arms: by value of the compared axis.
        reference: the value that others are measured against.
    """

    labels: Mapping[str, str]
    arms: Mapping[str, Arm]
    reference: str | None

    @property
    def title(self) -> str:
        """The row in words."""
        return ", ".join(self.labels.values())

    def alike(self, value: str) -> bool:
        """Whether the accuracy of an arm is of the same models, on the same samples, as the reference's."""
        arms = (self.arms.get(name) for name in (value, self.reference or ""))
        return len({run.accuracy_of for arm in arms if arm for run in arm.runs.values()}) == 1

    def difference(self, value: str) -> Difference | None:
        """An arm less the reference; None if they share no seed, or their accuracy is not of the same."""
        arm, reference = self.arms.get(value), self.arms.get(self.reference or "")
        if arm is None or reference is None or not self.alike(value):
            return None
        pairs = [(run, reference.runs[seed]) for seed, run in arm.runs.items() if seed in reference.runs]
        # What is left of a float's last digits would be significant where every seed gives the same.
        points = tuple(
            round(100 * (one.accuracy - other.accuracy), 9)
            for one, other in pairs
            if one.accuracy is not None and other.accuracy is not None
        )
        if not points:
            return None
        own, others = (sum(run.total_bytes for run in runs) for runs in zip(*pairs, strict=True))
        return Difference(points, paired_t(points), own / others)

    def failed(self, value: str) -> bool:
        """Whether an arm has no run to compare, and at least one that failed, where the reference has runs."""
        arm, reference = self.arms.get(value), self.arms.get(self.reference or "")
        return bool(arm and not arm.runs and arm.reasons and reference and reference.runs)

    def targets(self) -> list[float]:
        """The accuracies that bytes are counted to."""
        reference = self.arms.get(self.reference or "")
        if reference is None or reference.accuracy is None:
            return []
        return [share * reference.accuracy.mean for share in TARGETS]


@dataclass(frozen=True)
class StudyResults:
    """A whole study.

    Args:
        document: what the study file said.
        places: where cells stand.
        cells: results by digest.
    """

    document: Mapping[str, Any]
    places: Sequence[PlaceResult]
    cells: Mapping[str, CellResult]

    @property
    def title(self) -> str:
        """The study in a few words."""
        return str(self.document.get("title") or self.document["name"])

    @property
    def axes(self) -> dict[str, list[str]]:
        """The values of every axis, as in the file."""
        return {axis: list(values) for axis, values in self.document["axes"].items()}

    @property
    def compare(self) -> str:
        """The axis whose values are compared."""
        return self.document["report"]["compare"] or next(iter(self.axes))

    @property
    def values(self) -> list[str]:
        """The values that are compared, those of them that have a place."""
        seen = {place.labels[self.compare] for place in self.grid}
        return [value for value in self.axes[self.compare] if value in seen]

    @property
    def reference(self) -> str | None:
        """The value that others are measured against."""
        named: str | None = self.document["report"]["reference"]
        return named

    @property
    def claimed(self) -> list[str]:
        """The values that the claim is about."""
        return [
            value
            for value in self.document["report"]["claim"] or self.values
            if value != self.reference and value in self.values
        ]

    @property
    def grid(self) -> list[PlaceResult]:
        """The places of the grid."""
        return [place for place in self.places if place.stage == "grid"]

    @cached_property
    def summaries(self) -> dict[str, RunSummary]:
        """Every run that is done, by digest."""
        return {
            digest: summary(cell.record, Path(digest))
            for digest, cell in self.cells.items()
            if cell.status is Status.DONE and cell.record is not None and cell.record.rounds
        }

    @cached_property
    def groups(self) -> list[Group]:
        """The rows of the tables, in the order of the grid."""
        return self.grouped(self.grid, self.compare, self.reference)

    def together(self, axis: str) -> set[str]:
        """An axis and those that are zipped with it."""
        return {axis}.union(*(group for group in self.document["zip"] if axis in group))

    @property
    def others(self) -> list[str]:
        """The axes that rows of the tables differ in."""
        return [axis for axis in self.axes if axis not in self.together(self.compare)]

    def grouped(self, places: Sequence[PlaceResult], compare: str, reference: str | None) -> list[Group]:
        """Places by all their values but that of `compare`, those that go with it, and the seed."""
        found: dict[tuple[tuple[str, str], ...], dict[str, list[PlaceResult]]] = {}
        within = {*self.together(compare), SEED}
        for place in places:
            others = tuple((k, v) for k, v in place.labels.items() if k not in within)
            found.setdefault(others, {}).setdefault(place.labels[compare], []).append(place)
        return [
            Group(dict(others), {value: self._arm(value, arm) for value, arm in arms.items()}, reference)
            for others, arms in found.items()
        ]

    def along(self, axis: str) -> Group | None:
        """One axis of a study that varies one at a time: its values, against the first of them; None without a place."""
        together, first = self.together(axis), {name: values[0] for name, values in self.axes.items()}
        places = [
            place
            for place in self.grid
            if all(place.labels[name] == value for name, value in first.items() if name not in together)
        ]
        return next(iter(self.grouped(places, axis, first[axis])), None)

    def _arm(self, value: str, places: Sequence[PlaceResult]) -> Arm:
        runs, reasons = {}, {}
        for place in places:
            seed = place.labels[SEED]
            if place.digest in self.summaries:
                runs[seed] = self.summaries[place.digest]
            elif place.digest in self.cells and self.cells[place.digest].status is Status.FAILED:
                reasons[seed] = self.cells[place.digest].reason
        return Arm(value, runs, reasons)


def read_study(file: Path) -> StudyResults:
    """Reads a results file.

    Raises:
        RunError: it is missing or damaged, or nothing of the grid is done yet.
    """
    with Results.read(file) as results:
        study = StudyResults(results.study, results.places(), results.cells())
    if not any(place.digest in study.summaries for place in study.grid):
        raise RunError(f"results {file} have no finished cell to report; go on with `fedadapt study`")
    return study


def paired_t(points: Sequence[float]) -> float | None:
    """The p-value of a two-sided paired t-test, given the differences of the pairs.

    Returns:
        None for fewer than two pairs, and where all differences are the same, for which t is not defined.

    Example:
        >>> round(paired_t([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    from scipy.stats import ttest_1samp

    if len(points) < 2 or len(set(points)) == 1:
        return None
    return float(ttest_1samp(points, 0.0).pvalue)


def signed_rank(points: Sequence[float]) -> float | None:
    """The p-value of Wilcoxon's two-sided signed-rank test, given differences; None where all are zero.

    Example:
        >>> signed_rank([1.0, 2.0, 3.0, 4.0, 5.0])
        0.0625
    """
    from scipy.stats import wilcoxon

    nonzero = [point for point in points if point]
    return float(wilcoxon(nonzero).pvalue) if nonzero else None

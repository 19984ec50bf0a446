"""What a report knows of a run: everything read from its directory, summed up in one value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedadapt.errors import RunError
from fedadapt.runs.ledger import LedgerTotal
from fedadapt.runs.lock import is_held
from fedadapt.runs.records import ClientRecord, Direction, Outcome, RoundSummary
from fedadapt.runs.results import AccuracyOf, RunRecord, accuracy_of
from fedadapt.runs.store import RunStore

RECENT = 5
"""Rounds whose mean duration tells how long the rest will take."""


class Condition(StrEnum):
    """How it stands with a run."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class RunSummary:
    """A run as its directory tells it.

    Args:
        name: what the configuration calls it, or else the directory's name.
        path: the run directory.
        manifest: what was written down before the first round: configuration, plan, backbone, data, versions.
        rounds: the last committed round; 0 is before training.
        metrics: by name and round, for the rounds that measured them.
        upload_by_round: bytes from the clients up to and including a round, for every round from 0.
        download_by_round: bytes to the clients, likewise.
        group_bytes: bytes over all rounds by direction and group of tensors.
        client_accuracy: by client, on its own held-out samples, as last measured.
        answers: how many client answers ended how, for every round.
        last_clients: what became of each client that was asked in the last round.
        clients_seen: how many different clients were asked.
        seconds_by_round: how long each round took; round 0 is what came before the first.
        cpu_s: processor seconds over all rounds.
        held: whether a process writes to the run.
    """

    name: str
    path: Path
    manifest: Mapping[str, Any]
    rounds: int
    metrics: Mapping[str, Mapping[int, float]]
    upload_by_round: Mapping[int, int]
    download_by_round: Mapping[int, int]
    group_bytes: Mapping[tuple[Direction, str], int]
    client_accuracy: Mapping[int, float]
    answers: Mapping[int, Mapping[Outcome, int]]
    last_clients: tuple[ClientRecord, ...]
    clients_seen: int
    seconds_by_round: Mapping[int, float]
    cpu_s: float
    held: bool

    @property
    def accuracy_of(self) -> AccuracyOf:
        """What accuracy and loss are of; see `fedadapt.runs.results.accuracy_of`."""
        return accuracy_of(self.manifest, self.metrics)

    @property
    def accuracy_by_round(self) -> Mapping[int, float]:
        """Accuracy (0..1) of what `accuracy_of` says, for the rounds that measured it; a mean over clients if of theirs."""
        return self._of_models("accuracy")

    @property
    def loss_by_round(self) -> Mapping[int, float]:
        """Mean cross-entropy, likewise."""
        return self._of_models("loss")

    @property
    def last_metrics(self) -> dict[str, float]:
        """Every metric as last measured."""
        return {name: by_round[max(by_round)] for name, by_round in self.metrics.items() if by_round}

    @property
    def accuracy(self) -> float | None:
        """Accuracy in the last round that measured it."""
        return self.accuracy_by_round[max(self.accuracy_by_round)] if self.accuracy_by_round else None

    @property
    def loss(self) -> float | None:
        """Loss in the last round that measured it."""
        return self.loss_by_round[max(self.loss_by_round)] if self.loss_by_round else None

    @property
    def best_accuracy(self) -> float | None:
        """The highest accuracy of any round."""
        return max(self.accuracy_by_round.values(), default=None)

    @property
    def upload_bytes(self) -> int:
        """Bytes that left all clients together."""
        return self.upload_by_round[self.rounds]

    @property
    def download_bytes(self) -> int:
        """Bytes that reached all clients together."""
        return self.download_by_round[self.rounds]

    @property
    def total_bytes(self) -> int:
        """Bytes in both directions."""
        return self.upload_bytes + self.download_bytes

    @property
    def backbone_bytes(self) -> int:
        """What sending the frozen backbone costs, once; no round counts it."""
        return int(self.noted("backbone", "bytes", default=0))

    @property
    def once_bytes(self) -> int:
        """What of the backbone a client without it has to fetch before its first round."""
        return int(self.noted("backbone", "once", default=self.backbone_bytes))

    @property
    def total_with_backbone_bytes(self) -> int:
        """Bytes in both directions, and the backbone for every client that was asked."""
        return self.total_bytes + self.clients_seen * self.once_bytes

    @property
    def last_round_bytes(self) -> int:
        """Bytes in both directions in the last round: what goes on once all have begun."""
        before = max(0, self.rounds - 1)
        return self.total_bytes - self.upload_by_round[before] - self.download_by_round[before]

    @property
    def planned_rounds(self) -> int:
        """How many rounds the configuration asks for."""
        return int(self.noted("config", "rounds", default=self.rounds))

    @property
    def finished(self) -> bool:
        """Whether the last planned round is committed."""
        return self.rounds >= self.planned_rounds

    @property
    def condition(self) -> Condition:
        """Finished, or else whether some process goes on with it."""
        if self.finished:
            return Condition.FINISHED
        return Condition.RUNNING if self.held else Condition.STOPPED

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        """How many client answers ended how, over all rounds."""
        return sum((Counter(of_round) for of_round in self.answers.values()), Counter())

    @property
    def wall_s(self) -> float:
        """Seconds over all rounds."""
        return sum(self.seconds_by_round.values())

    @property
    def time_left_s(self) -> float | None:
        """Seconds that the rounds to come will take, if they are like the last ones; None before the first."""
        recent = [
            self.seconds_by_round[round] for round in range(max(1, self.rounds - RECENT + 1), self.rounds + 1)
        ]
        if not recent:
            return None
        return (self.planned_rounds - self.rounds) * sum(recent) / len(recent)

    @property
    def seed(self) -> int | None:
        """The root seed."""
        return self.noted("seed", default=self.noted("config", "seed"))

    @property
    def adapter(self) -> str:
        """The adapter's registered name, or a dash."""
        return str(self.noted("config", "adapter", "name", default="–"))

    @property
    def algorithm(self) -> str:
        """The algorithm's registered name, or a dash."""
        return str(self.noted("config", "algorithm", "name", default="–"))

    @property
    def label_counts(self) -> list[list[int]] | None:
        """Training samples by client and class, K x D, if the manifest holds them."""
        return self.noted("data", "client_counts")

    @property
    def class_names(self) -> list[str]:
        """One name a class, or none where the manifest names none."""
        return [str(name) for name in self.noted("data", "class_names", default=())]

    def _of_models(self, metric: str) -> Mapping[int, float]:
        return self.metrics.get(self.accuracy_of.metric(metric), {})

    def noted(self, *keys: str, default: Any = None) -> Any:
        """The manifest's entry under nested `keys`; `default` where a level is missing or null."""
        entry: Any = self.manifest
        for key in keys:
            if not isinstance(entry, Mapping):
                return default
            entry = entry.get(key)
        return default if entry is None else entry

    def as_json(self) -> dict[str, Any]:
        """The run as one object of ``compare --json``: bytes over all clients and rounds, accuracy 0..1."""
        return {
            "run": self.name,
            "rounds": self.rounds,
            "accuracy": self.accuracy,
            "accuracy_of": str(self.accuracy_of),
            "best_accuracy": self.best_accuracy,
            "upload_bytes": self.upload_bytes,
            "download_bytes": self.download_bytes,
            "last_round_bytes": self.last_round_bytes,
            "backbone_bytes": self.backbone_bytes,
            "once_bytes": self.once_bytes,
            "clients_seen": self.clients_seen,
            "total_with_backbone_bytes": self.total_with_backbone_bytes,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "seed": self.seed,
            "adapter": self.adapter,
            "algorithm": self.algorithm,
            "metrics": self.last_metrics,
        }


@dataclass
class _Tally:
    """What was counted of a run up to a round, with the names that `RunSummary` has for it."""

    manifest: Mapping[str, Any]
    last: int = -1
    moved: Counter[tuple[Direction, int]] = field(default_factory=Counter)
    groups: Counter[tuple[Direction, str]] = field(default_factory=Counter)
    answers: dict[int, Counter[Outcome]] = field(default_factory=dict)
    accuracy: dict[int, float] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    last_clients: list[ClientRecord] = field(default_factory=list)

    def add(self, clients: Sequence[ClientRecord], totals: Sequence[LedgerTotal], last: int) -> None:
        for record in clients:
            self.answers.setdefault(record.round, Counter())[record.outcome] += 1
            self.seen.add(record.client)
            if record.accuracy is not None:
                self.accuracy[record.client] = record.accuracy
        for round, direction, group, num_bytes in totals:
            self.moved[direction, round] += num_bytes
            self.groups[direction, group] += num_bytes
        if last > self.last:
            self.last_clients = [record for record in clients if record.round == last]
        self.last = last

    def cumulative(self, direction: Direction) -> dict[int, int]:
        return dict(enumerate(accumulate(self.moved[direction, round] for round in range(self.last + 1))))


class RunReader:
    """Reads a run again and again while it goes on, of the clients and the ledger only what is new.

    Args:
        path: the run directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._tally = _Tally({})

    def look(self) -> RunSummary | None:
        """The run as it is now; None if no round is committed yet.

        Raises:
            RunError: the directory is missing or damaged.
        """
        # Before the rounds are read: a process that commits its last round and ends in between has not stopped.
        held = is_held(self._path)
        with RunStore.read(self._path) as store:
            manifest, rounds = store.manifest, store.rounds()
            if manifest != self._tally.manifest or len(rounds) <= self._tally.last:
                # Another run has come in the place of the one that was read.
                self._tally = _Tally(manifest)
            if not rounds:
                return None
            # A writer may commit between two of these calls; what is told is of the rounds seen first.
            known, last = self._tally.last, rounds[-1].round
            clients = [record for record in store.clients(after=known) if record.round <= last]
            totals = [total for total in store.ledger_totals(after=known) if total.round <= last]
        self._tally.add(clients, totals, last)
        return _told(self._tally, rounds, self._path, held=held)


def summarise(path: Path) -> RunSummary:
    """Reads a run directory once.

    Args:
        path: the directory; the run may still be going on.

    Raises:
        RunError: the directory is missing or damaged, or no round is committed yet.
    """
    found = RunReader(path).look()
    if found is None:
        raise RunError(f"run {path} has no committed round to report; start it anew with `fedadapt run`")
    return found


def summary(record: RunRecord, path: Path) -> RunSummary:
    """A run at rest as its record tells it; at least one round is committed."""
    tally = _Tally(record.manifest)
    tally.add(record.clients, record.totals, record.rounds[-1].round)
    return _told(tally, record.rounds, path, held=False)


def _told(tally: _Tally, rounds: Sequence[RoundSummary], path: Path, *, held: bool) -> RunSummary:
    config = tally.manifest.get("config") or {}
    return RunSummary(
        name=str(config.get("name") or path.resolve().name),
        path=path,
        manifest=tally.manifest,
        rounds=tally.last,
        metrics=_metrics(rounds),
        upload_by_round=tally.cumulative(Direction.UPLOAD),
        download_by_round=tally.cumulative(Direction.DOWNLOAD),
        group_bytes=dict(tally.groups),
        client_accuracy=dict(tally.accuracy),
        answers={round: dict(answers) for round, answers in tally.answers.items()},
        last_clients=tuple(tally.last_clients),
        clients_seen=len(tally.seen),
        seconds_by_round={summary.round: summary.wall_s for summary in rounds},
        cpu_s=sum(summary.cpu_s for summary in rounds),
        held=held,
    )


def labels(runs: Sequence[RunSummary]) -> list[str]:
    """One name a run, no two the same: names that occur twice are told apart by directory, then by number.

    Plots and tables key runs by name, and the runs of a study often share theirs.
    """
    counts = Counter(run.name for run in runs)
    unique: list[str] = []
    for run in runs:
        label = run.name if counts[run.name] == 1 else f"{run.name} ({run.path.resolve().name})"
        candidate, number = label, 2
        while candidate in unique:
            candidate, number = f"{label} #{number}", number + 1
        unique.append(candidate)
    return unique


def _metrics(rounds: Sequence[RoundSummary]) -> dict[str, dict[int, float]]:
    """Every metric by round; what is no number cannot be drawn and is left out."""
    found: dict[str, dict[int, float]] = {}
    for one in rounds:
        for name, value in one.metrics.items():
            if math.isfinite(value):
                found.setdefault(name, {})[one.round] = value
    return found

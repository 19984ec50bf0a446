"""What a report knows of a run: everything read from its directory once, summed up in one value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedadapt.errors import RunError
from fedadapt.runs.records import Direction
from fedadapt.runs.results import RunRecord, read_record


@dataclass(frozen=True)
class RunSummary:
    """A run as its directory tells it.

    Args:
        name: what the configuration calls it, or else the directory's name.
        path: the run directory.
        manifest: what was written down before the first round: configuration, plan, backbone, data, versions.
        rounds: the last committed round; 0 is before training.
        accuracy_by_round: on the global test set (0..1), for the rounds that measured it.
        loss_by_round: likewise.
        upload_by_round: bytes from the clients up to and including a round, for every round from 0.
        download_by_round: bytes to the clients, likewise.
        group_bytes: bytes over all rounds by direction and group of tensors.
        client_accuracy: by client, on its own held-out samples, as last measured.
        outcomes: how many client answers ended how.
        clients_seen: how many different clients were asked.
        wall_s: seconds over all rounds.
        cpu_s: processor seconds over all rounds.
    """

    name: str
    path: Path
    manifest: Mapping[str, Any]
    rounds: int
    accuracy_by_round: Mapping[int, float]
    loss_by_round: Mapping[int, float]
    upload_by_round: Mapping[int, int]
    download_by_round: Mapping[int, int]
    group_bytes: Mapping[tuple[Direction, str], int]
    client_accuracy: Mapping[int, float]
    outcomes: Mapping[str, int]
    clients_seen: int
    wall_s: float
    cpu_s: float

    @property
    def accuracy(self) -> float | None:
        """Accuracy in the last round that measured it."""
        return self.accuracy_by_round[max(self.accuracy_by_round)] if self.accuracy_by_round else None

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
        }


def summarise(path: Path) -> RunSummary:
    """Reads a run directory.

    Args:
        path: the directory; the run may still be going on.

    Raises:
        RunError: the directory is missing or damaged, or no round is committed yet.
    """
    path = Path(path)
    record = read_record(path)
    if not record.rounds:
        raise RunError(f"run {path} has no committed round to report; start it anew with `fedadapt run`")
    return summary(record, path)


def summary(record: RunRecord, path: Path) -> RunSummary:
    """A run as its record tells it; at least one round is committed."""
    manifest, rounds, clients, totals = record.manifest, record.rounds, record.clients, record.totals
    last = rounds[-1].round
    group_bytes: Counter[tuple[Direction, str]] = Counter()
    for _, direction, group, num_bytes in totals:
        group_bytes[Direction(direction), group] += num_bytes
    config = manifest.get("config") or {}
    return RunSummary(
        name=str(config.get("name") or path.resolve().name),
        path=path,
        manifest=manifest,
        rounds=last,
        accuracy_by_round=_measured(rounds, "accuracy"),
        loss_by_round=_measured(rounds, "loss"),
        upload_by_round=_cumulative(totals, Direction.UPLOAD, last),
        download_by_round=_cumulative(totals, Direction.DOWNLOAD, last),
        group_bytes=dict(group_bytes),
        client_accuracy={record.client: record.accuracy for record in clients if record.accuracy is not None},
        outcomes=dict(Counter(str(record.outcome) for record in clients)),
        clients_seen=len({record.client for record in clients}),
        wall_s=sum(summary.wall_s for summary in rounds),
        cpu_s=sum(summary.cpu_s for summary in rounds),
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


def _measured(rounds: Sequence[Any], metric: str) -> dict[int, float]:
    values = ((summary.round, summary.metrics.get(metric)) for summary in rounds)
    return {round: value for round, value in values if value is not None and math.isfinite(value)}


def _cumulative(
    totals: Sequence[tuple[int, str, str, int]], direction: Direction, last: int
) -> dict[int, int]:
    moved: Counter[int] = Counter()
    for round, way, _, num_bytes in totals:
        if way == direction:
            moved[round] += num_bytes
    running = 0
    return {round: (running := running + moved[round]) for round in range(last + 1)}

"""The results of a study: one SQLite file with every cell as its run wrote it down, without its tensors.

``cells`` has a row for every run, by digest; ``places`` says where in the study a cell stands, which may be in
several places; ``study`` is what the study file said. The file is all that tables and figures are made from.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from fedadapt.errors import RunError
from fedadapt.files import from_json, whole
from fedadapt.runs.ledger import LedgerTotal
from fedadapt.runs.lock import acquire
from fedadapt.runs.records import ClientRecord, Direction, Outcome, RoundSummary
from fedadapt.runs.store import RunStore

VERSION = 1
RESULTS = "results.sqlite"
MAX_RECORD_BYTES = 2**28
"""What the record of one run may unfold to."""

_SCHEMA = f"""
BEGIN;
CREATE TABLE study (document TEXT NOT NULL);
CREATE TABLE cells (
    digest TEXT PRIMARY KEY, status TEXT NOT NULL, reason TEXT NOT NULL, config TEXT NOT NULL, rounds INTEGER,
    accuracy REAL, upload_bytes INTEGER, download_bytes INTEGER, wall_s REAL, cpu_s REAL, record BLOB
) WITHOUT ROWID;
CREATE TABLE places (
    stage TEXT, labels TEXT, number INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (stage, labels)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
COMMIT;
"""
"""``cells.config`` and ``places.labels`` are JSON; ``cells.record`` is JSON behind zlib."""


class Status(StrEnum):
    """How a cell ended."""

    DONE = "done"
    FAILED = "failed"
    """It would end so again: training diverged, or the setting cannot work. That is a result."""
    BROKEN = "broken"
    """The machine was in the way: a missing file, a full disk, a killed process. It is tried again."""


class AccuracyOf(StrEnum):
    """What the accuracy of a run is of."""

    GLOBAL = "global model"
    AT_CLIENTS = "global model at clients"
    OWN = "clients' own models"
    PART = "shared part alone"

    def metric(self, name: str) -> str:
        """What a metric such as ``accuracy`` or ``loss`` is called where it is of these models."""
        return f"client_{name}_mean" if self in (AccuracyOf.OWN, AccuracyOf.AT_CLIENTS) else name


def accuracy_of(manifest: Mapping[str, Any], measured: Container[str]) -> AccuracyOf:
    """What accuracy and loss of a run are of.

    Where clients keep tensors, such as their norms, the shared ones make a model only with theirs. Then it is
    their own models on their own held-out samples, or, if they hold none out, something that nobody has. And where
    there is no test set, it is the global model, or what a client uses in its place, on clients' own samples.

    Args:
        manifest: what the run is.
        measured: the names of its metrics.
    """
    kept = any(row.get("travels") == "kept" for row in manifest.get("plan") or ())
    no_test_set = (manifest.get("data") or {}).get("test") == 0
    if (kept or no_test_set) and AccuracyOf.OWN.metric("accuracy") in measured:
        return AccuracyOf.OWN if kept else AccuracyOf.AT_CLIENTS
    return AccuracyOf.PART if kept else AccuracyOf.GLOBAL


@dataclass(frozen=True)
class RunRecord:
    """What a run wrote down, without its tensors.

    Args:
        manifest: what the run is.
        rounds: the committed rounds, in order.
        clients: each client's part in each round.
        totals: bytes by round, direction and group.
    """

    manifest: dict[str, Any]
    rounds: list[RoundSummary]
    clients: list[ClientRecord]
    totals: list[LedgerTotal]

    @property
    def accuracy(self) -> float | None:
        """Accuracy of what `accuracy_of` says, in the last round that measured it."""
        metric = accuracy_of(self.manifest, {name for r in self.rounds for name in r.metrics}).metric(
            "accuracy"
        )
        measured = [r.metrics[metric] for r in self.rounds if metric in r.metrics]
        return measured[-1] if measured else None

    def num_bytes(self, way: Direction) -> int:
        """Bytes that went one way."""
        return sum(total.num_bytes for total in self.totals if total.direction is way)

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it.

        Raises:
            RunError: it is larger than `from_bytes` takes.
        """
        rows = {
            "manifest": self.manifest,
            "rounds": [[r.round, r.metrics, r.wall_s, r.cpu_s] for r in self.rounds],
            "clients": [
                [c.round, c.client, c.outcome, c.num_examples, c.num_steps, c.loss, c.accuracy, c.reason]
                for c in self.clients
            ],
            "totals": [list(total) for total in self.totals],
        }
        text = json.dumps(rows, separators=(",", ":")).encode()
        if len(text) > MAX_RECORD_BYTES:
            raise RunError(
                f"the record of a run has {len(text):,} bytes, results keep {MAX_RECORD_BYTES:,}; "
                "have fewer rounds or smaller cohorts"
            )
        return zlib.compress(text, 9)

    @classmethod
    def from_bytes(cls, data: bytes) -> RunRecord:
        """Reads what `to_bytes` wrote.

        Raises:
            ValueError: it did not write this.
        """
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(data, MAX_RECORD_BYTES)
            if not unpacker.eof:
                raise ValueError("the record of a run is cut short or too long")
            rows = from_json(text)
            return cls(
                rows["manifest"],
                [RoundSummary(*row) for row in rows["rounds"]],
                [ClientRecord(r, c, Outcome(o), *rest) for r, c, o, *rest in rows["clients"]],
                [LedgerTotal(round, Direction(way), group, n) for round, way, group, n in rows["totals"]],
            )
        except (zlib.error, KeyError, TypeError) as error:
            raise ValueError(f"not the record of a run: {error}") from error


def read_record(path: Path) -> RunRecord:
    """The record of a run directory; the run may still be going on.

    Raises:
        RunError: there is no run, or it is damaged.
    """
    with RunStore.read(path) as store:
        rounds = store.rounds()
        last = rounds[-1].round if rounds else 0
        # A writer may commit between two of these calls; the record is of the rounds seen first.
        return RunRecord(
            store.manifest,
            rounds,
            [record for record in store.clients() if record.round <= last],
            [total for total in store.ledger_totals() if total.round <= last],
        )


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell.

    Args:
        digest: of its configuration.
        status: how it ended.
        config: its configuration, as JSON values.
        reason: why it is not DONE.
        record: what its run wrote down, as far as it came; None if it did not begin.
        accuracy: in the last round that measured it; that of the record where there is one.
    """

    digest: str
    status: Status
    config: dict[str, Any]
    reason: str = ""
    record: RunRecord | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class PlaceResult:
    """Where a cell stands in a study.

    Args:
        stage: ``search`` or ``grid``.
        number: its place in the grid.
        labels: the value of every axis.
        digest: the cell.
    """

    stage: str
    number: int
    labels: dict[str, str]
    digest: str


@final
class Results:
    """A results file; made or opened by `write`, opened by `read`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, Results.write(Path(folder)) as results:
        ...     results.keep(CellResult("3f2a", Status.FAILED, {"seed": 0}, "diverged"))
        ...     results.cells()["3f2a"].reason
        'diverged'
    """

    def __init__(self, file: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.file = file
        self._connection = connection
        self._lock = lock
        try:
            ((version,),) = self._rows("PRAGMA user_version")
            if version != VERSION:
                raise RunError(
                    f"results {file} have version {version}, but known is {VERSION}; make them again"
                )
        except RunError:
            self.close()
            raise

    @classmethod
    def write(cls, folder: Path) -> Results:
        """Opens the results in a folder for writing; makes them where there are none.

        Raises:
            RunError: another process writes them, or they cannot be made or read.
        """
        file = folder / RESULTS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = acquire(folder)
        except OSError as error:
            raise RunError(f"cannot make {folder}: {error.strerror}; choose another place") from error
        try:
            connection = sqlite3.connect(file, isolation_level=None)
            try:
                # None yet; or none came of it, for want of room.
                if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                    connection.executescript(_SCHEMA)
            except sqlite3.Error:
                connection.close()
                raise
        except sqlite3.Error as error:
            os.close(lock)
            raise RunError(f"cannot open results {file}: {error}; choose another place") from error
        return cls(file, connection, lock)

    @classmethod
    def read(cls, file: Path) -> Results:
        """Opens a results file for reading, also while it is being written.

        Raises:
            RunError: there is none, or it is not one.
        """
        if not file.is_file():
            raise RunError(f"there are no results in {file}; make them with `fedadapt study`")
        uri = f"{file.absolute().as_uri()}?mode=ro"
        try:
            connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise RunError(f"cannot open results {file}: {error}; look at its permissions") from error
        return cls(file, connection, None)

    def close(self) -> None:
        """Gives the lock back; closing twice is no error."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def study(self) -> dict[str, Any]:
        """What the study file said."""
        rows = self._rows("SELECT document FROM study")
        document: dict[str, Any] = from_json(rows[0][0]) if rows else {}
        return document

    def cells(self) -> dict[str, CellResult]:
        """Every cell with a result, by digest."""
        rows = self._rows(
            "SELECT digest, status, config, reason, record, accuracy FROM cells ORDER BY digest"
        )
        found = {}
        try:
            for digest, status, config, reason, packed, accuracy in rows:
                record = None if packed is None else RunRecord.from_bytes(packed)
                # What earlier versions wrote was always the global model's.
                told = accuracy if record is None else record.accuracy
                found[digest] = CellResult(digest, Status(status), from_json(config), reason, record, told)
        except ValueError as error:
            raise RunError(f"results {self.file} are damaged: {error}; restore a copy") from error
        return found

    def places(self) -> list[PlaceResult]:
        """Where cells stand, searches first, the grid in its order."""
        rows = self._rows(
            "SELECT stage, number, labels, digest FROM places ORDER BY stage DESC, number, labels"
        )
        return [PlaceResult(stage, number, from_json(labels), cell) for stage, number, labels, cell in rows]

    def keep(self, result: CellResult) -> None:
        """Writes the result of a cell, in place of an earlier one."""
        record = result.record
        row = (
            result.digest,
            result.status,
            result.reason,
            json.dumps(result.config, sort_keys=True),
            None if record is None or not record.rounds else record.rounds[-1].round,
            result.accuracy,
            None if record is None else record.num_bytes(Direction.UPLOAD),
            None if record is None else record.num_bytes(Direction.DOWNLOAD),
            None if record is None else sum(r.wall_s for r in record.rounds),
            None if record is None else sum(r.cpu_s for r in record.rounds),
            None if record is None else record.to_bytes(),
        )
        self._write(("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [row]))

    def forget(self, digest: str) -> None:
        """Lets go of the result of a cell."""
        self._write(("DELETE FROM cells WHERE digest = ?", [(digest,)]))

    def describe(self, document: Mapping[str, Any], places: Iterable[PlaceResult]) -> None:
        """Writes what the study is, and where its cells stand, in place of what was written before."""
        rows = [(p.stage, json.dumps(p.labels), p.number, p.digest) for p in places]
        self._write(
            ("DELETE FROM study", [()]),
            ("DELETE FROM places", [()]),
            ("INSERT INTO study VALUES (?)", [(json.dumps(document),)]),
            ("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)", rows),
        )

    def copy(self, file: Path) -> None:
        """Writes all of it to another file, packed, in place of what is there.

        Raises:
            RunError: it cannot be written.
        """
        try:
            with whole(file) as part:
                self._connection.execute("VACUUM INTO ?", (str(part),))
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"cannot write {file}: {error}; free space or give another path") from error

    def _rows(self, query: str) -> list[Any]:
        try:
            return self._connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise RunError(f"cannot read results {self.file}: {error}; restore a copy") from error

    def _write(self, *statements: tuple[str, list[tuple[Any, ...]]]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, rows in statements:
                    self._connection.executemany(statement, rows)
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise RunError(
                f"cannot write results {self.file}: {error}; make room and give the same command again"
            ) from error

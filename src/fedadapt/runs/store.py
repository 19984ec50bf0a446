"""A run on disk: one directory, one SQLite file, and a lock that one writer holds.

A round is a transaction: its state, metrics, clients, ledger and what clients keep are there together or not
at all, whatever interrupts the process. While a run is written the file has a write-ahead log beside it; a
writer that closes folds it in, so that a run at rest is the one file. The log needs memory shared between
processes: a run being written belongs on a local disk, not on a network share.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, final

from fedadapt.errors import RunError
from fedadapt.files import from_json, keep_names
from fedadapt.params import Streams, from_bytes, to_bytes
from fedadapt.runs import chain
from fedadapt.runs.ledger import LedgerTotal, totals
from fedadapt.runs.lock import LOCK, acquire
from fedadapt.runs.log import LOG
from fedadapt.runs.records import ClientRecord, Direction, LedgerEntry, Outcome, RoundRecord, RoundSummary

FILE = "run.sqlite"
_NEW = f"{FILE}.new"
_BESIDE = (f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal", _NEW)
_PATIENCE_S = 30.0
"""How long to wait for another process that has the file locked for a moment."""

_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR_WRITE: "the system refuses the write, perhaps a full quota or a file size limit",
}


@final
class RunStore:
    """One run; made by `create`, `open` or `read`, closed by `close` or at the end of a ``with``.

    Every method raises RunError, in one line, if the file cannot be read or what it reads was altered.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with RunStore.create(Path(folder) / "first", {"seed": 7}) as store:
        ...         store.commit(RoundRecord(round=0, state={"model": {}}, metrics={"accuracy": 0.5}))
        ...     with RunStore.read(Path(folder) / "first") as store:
        ...         store.last_round, store.rounds()[0].metrics
        (0, {'accuracy': 0.5})
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self._path = path
        self._connection = connection
        self._lock = lock

    @classmethod
    def create(cls, path: Path, manifest: dict[str, Any]) -> RunStore:
        """Begins a run; if that fails, nothing of it is left.

        Args:
            path: the run's directory; it and its parents are made.
            manifest: what the run is, in values that JSON has.

        Raises:
            RunError: the directory holds a run, is in use, or cannot be written.
            TypeError: `manifest` has a value that JSON does not have.
        """
        document = json.dumps(manifest)
        if path.is_file():
            raise RunError(f"run directory {path} exists and is a file; choose another name")
        try:
            with ExitStack() as undo:
                missing = [folder for folder in (path, *path.parents) if not folder.exists()]
                for folder in reversed(missing):
                    undo.callback(_discard, folder)
                path.mkdir(parents=True, exist_ok=True)
                if path in missing:
                    undo.callback(_discard, path / LOCK)
                lock = acquire(path)
                undo.callback(os.close, lock)
                if (path / FILE).exists():
                    raise RunError(
                        f"directory {path} already holds a run; go on with it by `fedadapt resume`, "
                        "give the new one another name, or replace it with --overwrite"
                    )
                for name in (FILE, *_BESIDE):
                    # A log left by a run file that someone removed would be taken for the new file's own.
                    (path / name).unlink(missing_ok=True)
                    undo.callback(_discard, path / name)
                _write_new(path, document)
                store = cls._write(path, lock)
                undo.pop_all()
                return store
        except (OSError, sqlite3.Error) as error:
            raise RunError(
                f"cannot make run directory {path}: {_cause(error)}; choose another place"
            ) from error

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """Opens a run to commit more rounds, after checking every byte that it relies on.

        Raises:
            RunError: there is no run, another process writes to it, or it is damaged.
        """
        _require(path)
        try:
            with ExitStack() as undo:
                lock = acquire(path)
                undo.callback(os.close, lock)
                store = cls._write(path, lock)
                undo.pop_all()
                return store
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"cannot open run {path} for writing: {_cause(error)}") from error

    @classmethod
    def read(cls, path: Path) -> RunStore:
        """Opens a run for reading, also while it is being written; what is read is checked when it is read.

        Raises:
            RunError: there is no run, or its file is not one.
        """
        _require(path)
        try:
            store = cls(path, _connect(path / FILE, "ro"), None)
        except sqlite3.Error as error:
            raise RunError(f"cannot open run {path}: {_cause(error)}") from error
        try:
            store._check_version()
        except RunError:
            store.close()
            raise
        return store

    @staticmethod
    def remove(path: Path) -> None:
        """Removes the run of a directory, if there is one; what else is there stays.

        Raises:
            RunInUse: another process writes to it.
            RunError: it cannot be removed.
        """
        if not path.is_dir():
            return
        try:
            lock = acquire(path)
            try:
                for name in (FILE, *_BESIDE, LOG):
                    (path / name).unlink(missing_ok=True)
            finally:
                os.close(lock)
        except OSError as error:
            raise RunError(f"cannot remove run {path}: {_cause(error)}") from error

    @classmethod
    def _write(cls, path: Path, lock: int) -> RunStore:
        store = cls(path, _connect(path / FILE, "rw"), lock)
        try:
            store._check_version()
            store.verify()
            (mode,) = store._connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise RunError(
                    f"run {path} is on a file system without shared memory; move it to a local disk"
                )
            store._connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            store._connection.close()
            raise
        return store

    def close(self) -> None:
        """Folds the log into the file and gives the lock back; closing twice is no error."""
        try:
            if self._lock is not None:
                # A reader that is still there, or a full disk, keeps the log in use. Nothing is lost by that.
                with suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA busy_timeout = 0")
                    self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self._path

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run is, as it was given to `create`; a copy at every call."""
        with self._reading() as connection:
            document, _ = chain.manifest(connection)
            manifest: dict[str, Any] = from_json(document)
            return manifest

    @property
    def last_round(self) -> int | None:
        """The newest round that is on disk; None before the first commit."""
        with self._reading() as connection:
            return newest.round if (newest := chain.newest(connection)) else None

    def commit(self, record: RoundRecord) -> None:
        """Puts one round on disk, whole or not at all; it is safe once this returns.

        Only the newest state, and of each client the newest memory, are kept.

        Args:
            record: of the round after the last one, or of round 0.

        Raises:
            RunError: the round is out of order, its rows name another round, the store is read only, or the
                file cannot be written. Nothing of the round is on disk then.
        """
        if self._lock is None:
            raise RunError(f"run {self._path} is not open for writing; RunStore.open opens it so")
        rounds = {row.round for row in record.clients} | {row.round for row in record.ledger}
        if strays := rounds - {record.round}:
            raise RunError(
                f"the record of round {record.round} has clients or ledger entries of another round, "
                f"{min(strays)}; each round is committed with its own"
            )
        state = to_bytes(record.state)
        memory = {client: to_bytes(streams) for client, streams in record.memory.items()}
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if record.round != (following := chain.following(self._connection)):
                    raise RunError(f"the next round of run {self._path} is {following}, not {record.round}")
                chain.append(self._connection, record, state, memory)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.rollback()
                raise
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            safe = f"; rounds up to {record.round - 1} are safe" if record.round else ""
            raise RunError(
                f"cannot commit to run {self._path}: {_cause(error)}; nothing of round {record.round} was "
                f"written{safe}; remove the cause and go on with `fedadapt resume`"
            ) from error

    def state(self) -> Streams:
        """The server's state after the last round.

        Raises:
            RunError: no round was committed.
        """
        with self._reading() as connection:
            newest = chain.newest(connection)
            if newest is None:
                raise RunError(f"run {self._path} has no committed round, and so no state; start it anew")
            return from_bytes(chain.state(connection, newest))

    def memory(self, client: int) -> Streams | None:
        """What a client kept when it last took part; None if it never kept anything."""
        with self._reading() as connection:
            document = chain.memory(connection, client)
            # A writer checked who keeps something when it opened, and asks for many clients in every round.
            if document is None and self._lock is None and client in chain.owners(connection):
                raise ValueError(f"the memory of client {client} cannot be found")
            return None if document is None else from_bytes(document)

    def rounds(self) -> list[RoundSummary]:
        """All committed rounds in order, without their states."""
        with self._reading() as connection:
            return [
                RoundSummary(link.round, from_json(link.metrics), link.wall_s, link.cpu_s)
                for link in chain.links(connection)
            ]

    def clients(self, round: int | None = None, *, after: int = -1) -> list[ClientRecord]:
        """The client records of one round or of all `after` one, by round and client; empty if not committed."""
        with self._reading() as connection:
            return [
                ClientRecord(
                    link.round,
                    client,
                    Outcome(outcome),
                    examples,
                    steps,
                    _number(loss),
                    _number(accuracy),
                    reason,
                )
                for link in _chosen(connection, round, after)
                for _, client, outcome, examples, steps, loss, accuracy, reason in chain.rows(
                    connection, "clients", link
                )
            ]

    def ledger(self, round: int | None = None) -> list[LedgerEntry]:
        """The ledger of one round or of all, in the order committed; empty for a round not committed."""
        with self._reading() as connection:
            return [
                LedgerEntry(link.round, client, Direction(direction), group, num_bytes)
                for link in _chosen(connection, round)
                for _, client, direction, group, num_bytes in chain.rows(connection, "ledger", link)
            ]

    def ledger_totals(self, *, after: int = -1) -> list[LedgerTotal]:
        """The ledger of all rounds `after` one, summed over clients, by round, direction and group."""
        with self._reading() as connection:
            return totals(connection, after)

    def verify(self) -> None:
        """Checks the whole file against its digests.

        Raises:
            RunError: something was altered.
        """
        with self._reading() as connection:
            chain.check(connection)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            # All queries of one call see the same rounds, however many a writer commits meanwhile.
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.rollback()
        except (sqlite3.Error, ValueError) as error:
            raise RunError(
                f"cannot read run {self._path}: {_cause(error)}; if the file is damaged, restore a copy"
            ) from error

    def _check_version(self) -> None:
        with self._reading() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != chain.SCHEMA_VERSION:
                raise RunError(
                    f"run {self._path} has file version {version}, but known is {chain.SCHEMA_VERSION}; "
                    "use the fedadapt that wrote it, or restore the file from a copy"
                )


def _require(path: Path) -> None:
    if not (path / FILE).is_file():
        raise RunError(
            f"there is no run in {path}; start one with `fedadapt run`, or name the directory of one"
        )


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S, isolation_level=None)


def _write_new(path: Path, document: str) -> None:
    """Writes the empty run under another name first, so that a run file is complete from when it is there."""
    connection = _connect(path / _NEW, "rwc")
    try:
        root = chain.digest(document)
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.executescript(chain.SCHEMA)
        connection.execute("INSERT INTO manifest VALUES (?, ?, ?)", (document, root, root))
    finally:
        connection.close()
    (path / _NEW).rename(path / FILE)
    keep_names(path)


def _discard(path: Path) -> None:
    with suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()


def _chosen(connection: sqlite3.Connection, round: int | None, after: int = -1) -> Iterator[chain.Link]:
    return (link for link in chain.links(connection) if round in (None, link.round) and link.round > after)


def _number(cell: float | str | None) -> float | None:
    return None if cell is None else float(cell)


def _cause(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", None)
    if code in _CAUSES:
        return f"{_CAUSES[code]} ({error})"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join(text.split())

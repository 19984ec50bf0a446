"""The tables of a run, and the chain of digests that tells an altered run from the one that was committed.

The digest of a round covers its own row and the digest of the round before; the first covers the manifest. A
round's row holds the digests of all else that it committed, so whatever is read is checked against the chain,
and only as much as is read. Digests are taken of rows as the database gives them back, because SQLite does
not keep every float as it was (-0.0 becomes 0.0). They guard against accidents, not against a forger.

The functions raise `ValueError` on damage and let `sqlite3.Error` pass; `RunStore` makes both a `RunError`.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from fedadapt.runs.records import RoundRecord

SCHEMA_VERSION = 1

SCHEMA = f"""
BEGIN;
CREATE TABLE manifest (document TEXT NOT NULL, digest BLOB NOT NULL, tip BLOB NOT NULL);
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY, metrics TEXT NOT NULL, wall_s REAL NOT NULL, cpu_s REAL NOT NULL,
    state BLOB NOT NULL, memory BLOB NOT NULL, clients BLOB NOT NULL, ledger BLOB NOT NULL,
    digest BLOB NOT NULL
);
CREATE TABLE state (part INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE memory (
    client INTEGER PRIMARY KEY, round INTEGER NOT NULL, digest BLOB NOT NULL, bytes BLOB NOT NULL
);
CREATE TABLE clients (
    round INTEGER, client INTEGER, outcome TEXT NOT NULL, num_examples INTEGER NOT NULL,
    num_steps INTEGER NOT NULL, loss, accuracy, reason TEXT NOT NULL, PRIMARY KEY (round, client)
) WITHOUT ROWID;
CREATE TABLE ledger (
    round INTEGER, position INTEGER, client INTEGER NOT NULL, direction TEXT NOT NULL, grp TEXT NOT NULL,
    num_bytes INTEGER NOT NULL, PRIMARY KEY (round, position)
) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
"""``manifest.tip`` is the digest of the last round, so that a missing end is seen. ``clients.loss`` and
``clients.accuracy`` have no type so that they can hold the text ``nan``: SQLite would turn the float into
NULL, which means not measured."""

_QUERIES = {
    "clients": "SELECT round, client, outcome, num_examples, num_steps, loss, accuracy, reason FROM clients "
    "WHERE round = ? ORDER BY client",
    "ledger": "SELECT round, client, direction, grp, num_bytes FROM ledger WHERE round = ? ORDER BY position",
}

_LINKS = (
    "SELECT round, metrics, wall_s, cpu_s, state, memory, clients, ledger, digest FROM rounds ORDER BY round"
)
"""The columns have their names here because damage to the schema may add one."""

_STATE_PART = 2**28
"""Bytes of state in one row: SQLite refuses a value of more than 10**9."""

Row = tuple[Any, ...]


class Link(NamedTuple):
    """The row of one round.

    Args:
        round: counted from 0.
        metrics: as JSON.
        wall_s: seconds the round took.
        cpu_s: processor seconds it took.
        state: digest of the state after the round.
        memory: digest of the index of what all clients keep after the round.
        clients: digest of the round's client rows.
        ledger: digest of the round's ledger rows.
        digest: of all the above and of the round before.
    """

    round: int
    metrics: str
    wall_s: float
    cpu_s: float
    state: bytes
    memory: bytes
    clients: bytes
    ledger: bytes
    digest: bytes


def digest(*values: object) -> bytes:
    """The digest of plain values: numbers, text, bytes, None, and lists and tuples of them."""
    return hashlib.sha256(ascii(values).encode()).digest()


def memory_digest(client: int, round: int, document: bytes) -> bytes:
    """The digest of what one client keeps; it covers whose it is and since when."""
    return digest(client, round, hashlib.sha256(document).digest())


def manifest(connection: sqlite3.Connection) -> tuple[str, bytes]:
    """The manifest as JSON, and the digest that the chain begins with.

    Raises:
        ValueError: it was altered.
    """
    rows = connection.execute("SELECT document, digest FROM manifest").fetchall()
    if len(rows) != 1 or digest(rows[0][0]) != rows[0][1]:
        raise ValueError("the manifest was altered")
    document, root = rows[0]
    return document, root


def links(connection: sqlite3.Connection) -> Iterator[Link]:
    """The rounds in order, each checked against the one before.

    Raises:
        ValueError: a round is missing or was altered.
    """
    _, previous = manifest(connection)
    for expected, row in enumerate(connection.execute(_LINKS)):
        link = Link(*row)
        if link.round != expected or digest(previous, *link[:-1]) != link.digest:
            raise ValueError(f"round {expected} was altered")
        previous = link.digest
        yield link
    if connection.execute("SELECT tip FROM manifest").fetchone() != (previous,):
        raise ValueError("the last round is missing")


def newest(connection: sqlite3.Connection) -> Link | None:
    """The last round of the whole chain, if there is one.

    Raises:
        ValueError: a round is missing or was altered.
    """
    last = deque(links(connection), maxlen=1)
    return last[0] if last else None


def rows(connection: sqlite3.Connection, table: Literal["clients", "ledger"], link: Link) -> list[Row]:
    """The rows that one round added to a table.

    Raises:
        ValueError: they are not the rows that the round committed.
    """
    found = _rows(connection, table, link.round)
    if digest(found) != getattr(link, table):
        raise ValueError(f"table {table} of round {link.round} was altered")
    return found


def state(connection: sqlite3.Connection, link: Link) -> bytes:
    """The stored state.

    Raises:
        ValueError: it is not the state after the round of `link`.
    """
    parts = [part for (part,) in connection.execute("SELECT bytes FROM state ORDER BY part")]
    # A damaged cell may have any type, whatever its column was declared as.
    document = b"".join(part for part in parts if isinstance(part, bytes))
    if hashlib.sha256(document).digest() != link.state:
        raise ValueError(f"the state of round {link.round} was altered")
    return document


def memory(connection: sqlite3.Connection, client: int) -> bytes | None:
    """What one client keeps, if there is a row for it.

    Raises:
        ValueError: it was altered.
    """
    row = connection.execute("SELECT round, digest, bytes FROM memory WHERE client = ?", (client,)).fetchone()
    if row is None:
        return None
    since, expected, document = row
    typed = isinstance(since, int) and isinstance(document, bytes)
    if not typed or memory_digest(client, since, document) != expected:
        raise ValueError(f"the memory of client {client} was altered")
    return bytes(document)


def owners(connection: sqlite3.Connection) -> set[int]:
    """The clients that keep something.

    Raises:
        ValueError: they, since when they keep it, or what, are not as after the last round.
    """
    index, link = _memory_index(connection), newest(connection)
    if link is not None and digest(index) != link.memory:
        raise ValueError(f"what clients keep after round {link.round} was altered")
    return {client for client, _, _ in index}


def check(connection: sqlite3.Connection) -> None:
    """Checks the structure of the file and everything in it, one round in memory at a time.

    Raises:
        ValueError: something was altered.
    """
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise ValueError(" ".join(finding.split()))
    link = None
    for link in links(connection):
        rows(connection, "clients", link)
        rows(connection, "ledger", link)
    if link is not None:
        state(connection, link)
        for client in owners(connection):
            memory(connection, client)


def following(connection: sqlite3.Connection) -> int:
    """The number of the next round to append."""
    last: int | None = connection.execute("SELECT max(round) FROM rounds").fetchone()[0]
    return 0 if last is None else last + 1


def append(
    connection: sqlite3.Connection, record: RoundRecord, state: bytes, memory: dict[int, bytes]
) -> None:
    """Writes the round that is `following`, inside the transaction of the caller.

    Args:
        connection: of a file that was checked when it was opened.
        record: what the round did.
        state: its state as bytes, which replaces the one before.
        memory: its memory as bytes, which replaces what these clients kept before.
    """
    number = record.round
    connection.execute("DELETE FROM state")
    view = memoryview(state)
    connection.executemany(
        "INSERT INTO state VALUES (?, ?)",
        ((start, view[start : start + _STATE_PART]) for start in range(0, len(state), _STATE_PART)),
    )
    connection.executemany(
        "INSERT OR REPLACE INTO memory VALUES (?, ?, ?, ?)",
        ((client, number, memory_digest(client, number, kept), kept) for client, kept in memory.items()),
    )
    connection.executemany(
        "INSERT INTO clients VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                number,
                c.client,
                c.outcome,
                c.num_examples,
                c.num_steps,
                _cell(c.loss),
                _cell(c.accuracy),
                c.reason,
            )
            for c in record.clients
        ),
    )
    connection.executemany(
        "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)",
        (
            (number, position, entry.client, entry.direction, entry.group, entry.num_bytes)
            for position, entry in enumerate(record.ledger)
        ),
    )
    tip = connection.execute("SELECT tip FROM manifest").fetchone()
    connection.execute(
        "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, x'')",
        (
            number,
            json.dumps(record.metrics),
            record.wall_s,
            record.cpu_s,
            hashlib.sha256(state).digest(),
            digest(_memory_index(connection)),
            digest(_rows(connection, "clients", number)),
            digest(_rows(connection, "ledger", number)),
        ),
    )
    row = connection.execute(f"{_LINKS} DESC LIMIT 1").fetchone()
    sealed = digest(*tip, *row[:-1])
    connection.execute("UPDATE rounds SET digest = ? WHERE round = ?", (sealed, number))
    connection.execute("UPDATE manifest SET tip = ?", (sealed,))


def _rows(connection: sqlite3.Connection, table: str, round: int) -> list[Row]:
    return connection.execute(_QUERIES[table], (round,)).fetchall()


def _memory_index(connection: sqlite3.Connection) -> list[Row]:
    return connection.execute("SELECT client, round, digest FROM memory ORDER BY client").fetchall()


def _cell(number: float | None) -> float | str | None:
    return "nan" if number is not None and math.isnan(number) else number

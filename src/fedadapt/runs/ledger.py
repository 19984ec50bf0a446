"""Totals over the ledger of a run, summed by the database: many clients make millions of rows."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from fedadapt.runs import chain
from fedadapt.runs.records import Direction


class LedgerTotal(NamedTuple):
    """Bytes of one group in one direction, over all clients of a round.

    Args:
        round: counted from 1.
        direction: download or upload.
        group: a value of `fedadapt.params.Group`, or `fedadapt.runs.records.FRAMING`.
        num_bytes: as they left the senders.
    """

    round: int
    direction: Direction
    group: str
    num_bytes: int


def totals(connection: sqlite3.Connection) -> list[LedgerTotal]:
    """The totals of every round, by round, direction and group; one round's rows in memory at a time.

    Raises:
        ValueError: the ledger was altered.
    """
    for link in chain.links(connection):
        chain.rows(connection, "ledger", link)
    sums = connection.execute(
        "SELECT round, direction, grp, sum(num_bytes) FROM ledger "
        "GROUP BY round, direction, grp ORDER BY round, direction, grp"
    )
    return [LedgerTotal(at, Direction(direction), group, total) for at, direction, group, total in sums]

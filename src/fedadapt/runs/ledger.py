"""Totals over the ledger of a run, of which one round's rows are in memory at a time."""

from __future__ import annotations

import sqlite3
from collections import Counter
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


def totals(connection: sqlite3.Connection, after: int = -1) -> list[LedgerTotal]:
    """The totals of every round after the round `after`, by round, direction and group.

    Sums the very rows that are checked. A GROUP BY of the database would read the table by another way, and
    of a damaged file the two may give different rows.

    Raises:
        ValueError: the ledger was altered.
    """
    found = []
    for link in chain.links(connection):
        if link.round <= after:
            continue
        sums: Counter[tuple[str, str]] = Counter()
        for _, _, direction, group, num_bytes in chain.rows(connection, "ledger", link):
            sums[direction, group] += num_bytes
        found += [
            LedgerTotal(link.round, Direction(direction), group, total)
            for (direction, group), total in sorted(sums.items())
        ]
    return found

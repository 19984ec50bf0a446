"""Ledger totals are the sums of the entries."""

from __future__ import annotations

from collections import Counter

from fedadapt.runs.records import FRAMING, Direction
from fedadapt.runs.store import RunStore


def test_totals_of_one_round_by_hand(tmp_path, make_round):
    """Two downloads of 1000 bytes are 2000, and the framing stands apart from the tensors."""
    with RunStore.create(tmp_path / "run", {}) as store:
        store.commit(make_round(0))
        assert store.ledger_totals() == [
            (0, Direction.DOWNLOAD, "adapter", 2000),
            (0, Direction.UPLOAD, "adapter", 500),
            (0, Direction.UPLOAD, FRAMING, 64),
        ]


def test_totals_agree_with_the_entries(tmp_path, make_round):
    """Over several rounds, totals are what summing all entries gives."""
    with RunStore.create(tmp_path / "run", {}) as store:
        for number in range(4):
            store.commit(make_round(number))
        sums: Counter[tuple[int, Direction, str]] = Counter()
        for entry in store.ledger():
            sums[entry.round, entry.direction, entry.group] += entry.num_bytes
        assert {total[:3]: total.num_bytes for total in store.ledger_totals()} == sums

"""Whether cells that were run again came out as they did before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedadapt.experiment.study.grid import Cell, Plan
from fedadapt.runs.records import Direction
from fedadapt.runs.results import CellResult

TOLERANCE = 0.005
"""Accuracy may differ by so much: another processor sums floats in another order."""


@dataclass(frozen=True)
class Compared:
    """A cell as it came out here, and as it is written down elsewhere.

    Args:
        cell: which.
        here: the result here.
        there: the result elsewhere; None if it has none.
    """

    cell: Cell
    here: CellResult
    there: CellResult | None

    @property
    def agrees(self) -> bool:
        """Whether it ended alike, with the same bytes to the byte and the same accuracy within `TOLERANCE`."""
        if self.there is None or self.here.status is not self.there.status:
            return False
        if self.bytes_of(self.here) != self.bytes_of(self.there):
            return False
        if self.here.accuracy is None or self.there.accuracy is None:
            return self.here.accuracy is self.there.accuracy
        return abs(self.here.accuracy - self.there.accuracy) <= TOLERANCE

    @staticmethod
    def bytes_of(result: CellResult) -> int | None:
        """Bytes both ways over all rounds."""
        record = result.record
        return None if record is None else sum(record.num_bytes(way) for way in Direction)


def compare(plan: Plan, here: Mapping[str, CellResult], there: Mapping[str, CellResult]) -> list[Compared]:
    """Every cell of a plan, here and elsewhere."""
    return [Compared(cell, here[cell.digest], there.get(cell.digest)) for cell in plan.cells.values()]

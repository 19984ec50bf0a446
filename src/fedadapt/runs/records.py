"""The rows of a run: what a round did, what each client did in it, and every byte that moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fedadapt.params import Streams


class Direction(StrEnum):
    """Which way a frame went, seen from the client."""

    DOWNLOAD = "download"
    UPLOAD = "upload"


class Outcome(StrEnum):
    """How a client's part in a round ended."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    FAILED = "failed"
    LATE = "late"
    ABSENT = "absent"


FRAMING = "framing"
"""The ledger's name for a frame's bytes that hold no tensor: header, scalars, checksum."""


@dataclass(frozen=True)
class LedgerEntry:
    """Bytes of one group of tensors in one frame.

    Args:
        round: counted from 1; 0 for an exchange before the first.
        client: its number.
        direction: download or upload.
        group: a value of `fedadapt.params.Group`, or `FRAMING`. The entries of one frame sum to its length.
        num_bytes: as they leave the sender.
    """

    round: int
    client: int
    direction: Direction
    group: str
    num_bytes: int


@dataclass(frozen=True)
class ClientRecord:
    """One client's part in one round.

    Args:
        round: counted from 1.
        client: its number.
        outcome: how it ended.
        num_examples: samples it holds for training.
        num_steps: local steps it took.
        loss: mean training loss over its local steps.
        accuracy: of the model it would use, on its own held-out samples, if measured.
        reason: why the outcome is not ACCEPTED.
    """

    round: int
    client: int
    outcome: Outcome
    num_examples: int = 0
    num_steps: int = 0
    loss: float | None = None
    accuracy: float | None = None
    reason: str = ""


def absences(clients: Sequence[ClientRecord]) -> str:
    """How many updates of a round are missing and why, the most frequent outcome first, each with one example.

    Example:
        >>> lost = [ClientRecord(1, client, Outcome.ABSENT, reason="dropped out") for client in (4, 7)]
        >>> absences([ClientRecord(1, 2, Outcome.ACCEPTED), *lost])
        '2 absent (client 4: dropped out)'
    """
    by_outcome: dict[Outcome, list[ClientRecord]] = {}
    for record in clients:
        if record.outcome is not Outcome.ACCEPTED:
            by_outcome.setdefault(record.outcome, []).append(record)
    return ", ".join(
        f"{len(lost)} {outcome} (client {lost[0].client}: {lost[0].reason})"
        for outcome, lost in sorted(by_outcome.items(), key=lambda item: -len(item[1]))
    )


@dataclass(frozen=True)
class RoundRecord:
    """Everything that one round commits together.

    Args:
        round: 0 for the state before the first round.
        state: the server's whole state after the round.
        metrics: numbers about the global model, by name: ``accuracy`` (0..1), ``loss``, ...
        clients: one record for each client that was asked.
        ledger: every byte that moved.
        memory: what clients that took part keep to themselves, by client.
        wall_s: seconds the round took.
        cpu_s: processor seconds it took.
    """

    round: int
    state: Streams
    metrics: dict[str, float] = field(default_factory=dict)
    clients: tuple[ClientRecord, ...] = ()
    ledger: tuple[LedgerEntry, ...] = ()
    memory: dict[int, Streams] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def empty(self) -> bool:
        """Whether nobody's update counted, so that the model is that of the round before."""
        return all(record.outcome is not Outcome.ACCEPTED for record in self.clients)


@dataclass(frozen=True)
class RoundSummary:
    """What a committed round says about itself.

    Args:
        round: 0 for the state before the first round.
        metrics: numbers about the global model, by name.
        wall_s: seconds the round took.
        cpu_s: processor seconds it took.
    """

    round: int
    metrics: dict[str, float]
    wall_s: float
    cpu_s: float

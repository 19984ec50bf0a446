"""The rows of a run: what a round did, what each client did in it, and every byte that moved."""

from __future__ import annotations

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

"""What an engine is given to carry the messages of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedadapt.federation.handshake import Terms


@dataclass(frozen=True)
class Patience:
    """How long a round waits, all in seconds.

    Args:
        quorum: updates without which a round stays open past its deadline.
        deadline_s: from when a quorum of sites is there; None waits for every site that was asked.
        ask_again_s: after which a site that has not answered is asked once more, then after twice as long, and so
            on: it may have been restarted, and a site that was not answers the same bytes.
        poll_s: between two looks for replies.
    """

    quorum: int
    deadline_s: float | None
    ask_again_s: float = 30.0
    poll_s: float = 0.5


@dataclass(frozen=True)
class Mandate:
    """What the engine of a run must know.

    Args:
        terms: what sites must agree to.
        num_clients: numbers that sites may have.
        patience: how long a round waits.
        backbone: reads ``(offset, count)`` bytes of the backbone's weight file.
        accepted: the last round whose update of a client counted, 0 if none did.
        numbers: which node is which client; empty where sites say so themselves.
        say: writes one line to the server's log.
    """

    terms: Terms
    num_clients: int
    patience: Patience
    backbone: Callable[[int, int], bytes]
    accepted: Callable[[int], int]
    numbers: Mapping[int, int]
    say: Callable[[str], None]

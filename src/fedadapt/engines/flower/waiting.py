"""Who is there, what is out, and what an open round still waits for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedadapt.engines.flower.carry import REQUESTS
from fedadapt.engines.flower.pull import Pull
from fedadapt.federation.messages import Reply
from fedadapt.runs.records import Outcome

MAX_NAMED = 10
"""Clients that a line of the log names."""

LONGEST_PAUSE_S = 60.0
"""Before a node that fails again and again is greeted anew."""


@dataclass
class Sent:
    """A message that is out: what it was, to whom, until when an answer is expected, and how often it was sent."""

    kind: str
    node: int
    until: float
    round: int = 0
    client: int = -1
    times: int = 1
    pull: Pull | None = None

    @property
    def asks(self) -> bool:
        """Whether it holds a request, and not a word of the handshake."""
        return self.kind in REQUESTS


@dataclass
class Sites:
    """Who is there: nodes that said hello, those that may take part, and when to greet one that failed again."""

    greeted: set[int] = field(default_factory=set)
    node_of: dict[int, int] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)

    def client_at(self, node: int) -> int | None:
        """The number of the client at a node; None if it takes no part."""
        return next((client for client, at in self.node_of.items() if at == node), None)

    def forget(self, node: int) -> None:
        """Lets a node be greeted anew."""
        self.greeted.discard(node)
        client = self.client_at(node)
        if client is not None:
            del self.node_of[client]


@dataclass
class OpenRound:
    """A round that is open: who sent no update yet, who failed, who has failed before, and what came.

    One that is for measuring waits for those who are there; who failed is not asked again.
    """

    round: int
    measure: bool
    waiting: set[int]
    replies: list[Reply] = field(default_factory=list)
    failed: dict[int, Reply] = field(default_factory=dict)
    afresh: dict[int, Reply] = field(default_factory=dict)
    usable: int = 0
    again_at: float = math.inf

    @property
    def silent(self) -> set[int]:
        """Who has sent nothing yet."""
        return self.waiting - self.failed.keys()

    def take(self, arrived: Sequence[Reply]) -> None:
        """Notes what arrived; what was asked at another time, or to another end, is passed on with the rest."""
        for reply in arrived:
            asked = (reply.round, reply.measure) == (self.round, self.measure)
            if not asked or reply.client not in self.waiting:
                self.replies.append(reply)
            elif reply.failure:
                self.failed[reply.client] = reply
            else:
                self.replies.append(reply)
                self.waiting.discard(reply.client)
                self.failed.pop(reply.client, None)
                self.usable += 1

    def complete(self, present: set[int]) -> bool:
        """Whether nothing more can come that is waited for."""
        return not (self.silent & present if self.measure else self.silent)

    def missing(self, present: set[int]) -> str:
        """Whom it waits for, in one line."""
        groups = {"at work": self.silent & present}
        if not self.measure:
            groups |= {"not here": self.silent - present, "failed": set(self.failed)}
        named = f"measuring of round {self.round - 1}" if self.measure else f"round {self.round}"
        listed = (f"{_numbers(who)} ({how})" for how, who in groups.items() if who)
        return f"{named}: waits for {'; '.join(listed)}"

    def try_again(self, now: float, present: set[int]) -> bool:
        """Forgets failures, a while after everybody who is present had answered; whether it did."""
        if not self.failed or self.silent & present:
            self.again_at = math.inf
            return False
        self.again_at = min(self.again_at, now + LONGEST_PAUSE_S)
        if now < self.again_at:
            return False
        # They may have lost what a download starts from.
        self.afresh |= self.failed
        self.failed.clear()
        self.again_at = math.inf
        return True

    def close(self) -> list[Reply]:
        """What came, and a word about everybody else: of who failed and then fell silent, how it failed."""
        absent = Reply(self.round, -1, failure="no reply", outcome=Outcome.ABSENT, measure=self.measure)
        silence = {client: replace(absent, client=client) for client in self.silent}
        return [*self.replies, *self.failed.values(), *(self.afresh.get(c, r) for c, r in silence.items())]


def _numbers(clients: set[int]) -> str:
    """The first of them by number, and how many there are besides."""
    shown = sorted(clients)[:MAX_NAMED]
    more = f" and {len(clients) - len(shown)} more" if len(clients) > len(shown) else ""
    return f"client{'s' * (len(clients) > 1)} {', '.join(map(str, shown))}{more}"

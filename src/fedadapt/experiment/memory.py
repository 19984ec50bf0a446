"""What simulated clients keep to themselves: read from the run, and committed with the rounds that it counts in."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence

from fedadapt.federation.messages import EVERYONE
from fedadapt.params import Streams
from fedadapt.runs.records import ClientRecord, Outcome
from fedadapt.runs.store import RunStore

UNSETTLED = "unsettled:"
"""Begins the name of a stream that counts once the update does that was made with it, which is still on its way."""


def settled(streams: Streams | None) -> Streams | None:
    """What of a client's memory counts; None if nothing does yet."""
    return {s: p for s, p in (streams or {}).items() if not s.startswith(UNSETTLED)} or None


class StoredMemory(UserDict[int, Streams]):
    """The clients' memory: read from the run when it is asked for; what is written waits for the round's commit."""

    def __init__(self, store: RunStore) -> None:
        super().__init__()
        self.store = store
        self.unsaved: set[int] = set()

    def __contains__(self, client: object) -> bool:
        if client not in self.data:
            kept = self.store.memory(client)  # type: ignore[arg-type]
            if not kept:
                return False
            self.data[client] = kept  # type: ignore[index]
        return bool(self.data[client])  # type: ignore[index]

    def __setitem__(self, client: int, streams: Streams) -> None:
        self.data[client] = streams
        self.unsaved.add(client)

    def written(self) -> dict[int, Streams]:
        """What this round wrote."""
        return {client: self.data[client] for client in sorted(self.unsaved)}

    def settle(self, records: Sequence[ClientRecord]) -> None:
        """Ends a round: whose update does not count is as if it had not been asked, now or when its work began.

        Args:
            records: of all who were heard of in the round. What others wrote, that are still at work, is unsettled.
        """
        for client in self.unsaved - {record.client for record in records} - {EVERYONE}:
            written, kept = self.data[client], self.store.memory(client) or {}
            self[client] = kept | {UNSETTLED + stream: params for stream, params in written.items()}
        for record in records:
            client, counts = record.client, record.outcome is Outcome.ACCEPTED
            if client in self.unsaved:
                if not counts:
                    del self.data[client]
                    self.unsaved.remove(client)
            elif client in self:
                own = self.data[client]
                late = {s.removeprefix(UNSETTLED): p for s, p in own.items() if s.startswith(UNSETTLED)}
                if late:
                    self[client] = late if counts else settled(own) or {}

    def forget(self) -> None:
        """Lets go of what is on disk, so that memory follows the cohort and not the clients ever seen."""
        self.data.clear()
        self.unsaved.clear()

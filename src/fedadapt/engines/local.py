"""The in-process engine: a cohort is answered in chunks that share one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.serve import Party, serve


class LocalEngine:
    """Simulates every client of a federation in this process.

    Args:
        party: holds all clients' data.
        chunk: clients trained together; None picks by `CHUNK_IMAGES`. It changes speed and memory, not results.
        on_clients: told after every chunk how many clients are done.
    """

    CHUNK_IMAGES = 256
    """Images a step of one chunk should hold: enough to feed the machine, few enough to stay in its caches."""

    def __init__(
        self, party: Party, chunk: int | None = None, on_clients: Callable[[int], None] = lambda count: None
    ) -> None:
        wanted = chunk or max(1, self.CHUNK_IMAGES // party.train.batch_size)
        self.party = party
        self.chunk = min(wanted, party.model.max_clients or wanted)
        self.on_clients = on_clients

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Serves the requests chunk by chunk, clients of like size together so that little is padded."""
        by_size = sorted(requests, key=lambda r: (len(self.party.indices[r.client]), r.client))
        replies: list[Reply] = []
        for begin in range(0, len(by_size), self.chunk):
            replies += serve(by_size[begin : begin + self.chunk], self.party)
            self.on_clients(len(replies))
        return replies

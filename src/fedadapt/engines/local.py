"""The in-process engine: a cohort is answered in chunks that share one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.serve import Party, serve

CACHE_BYTES = 2 * 2**20
"""What the largest map of a step may take on a processor, so that the next layer finds it in the cache."""

MEMORY_BYTES = 2**30
"""What the tensors of all clients of a chunk may take together."""


def choose_chunk(party: Party) -> int:
    """How many clients to train together, from shapes alone, so that it is the same wherever a run goes on.

    On a processor a step's largest map has to fit the cache: with more clients there are fewer calls, but each waits
    for memory. Everywhere maps, gradients, trained tensors and the optimiser's state have to fit the memory.
    """
    largest, together = party.model.map_values(party.split.images.shape[1:])
    values = sum(tensor.numel() for tensor in party.model.start.values())
    # Forward and backward keep about two of each map; start, end, gradient and two moments of each tensor.
    per_client = 4 * (2 * party.train.batch_size * together + 5 * values)
    fits = MEMORY_BYTES // per_client
    if next(iter(party.model.start.values())).device.type == "cpu":
        fits = min(fits, CACHE_BYTES // (4 * party.train.batch_size * largest))
    return max(1, fits)


class LocalEngine:
    """Simulates every client of a federation in this process.

    Args:
        party: holds all clients' data.
        chunk: clients trained together; None for as many as `choose_chunk` says. It changes speed and memory, not
            results.
        on_clients: told after every chunk how many clients are done.
    """

    def __init__(
        self, party: Party, chunk: int | None = None, on_clients: Callable[[int], None] = lambda count: None
    ) -> None:
        wanted = chunk or choose_chunk(party)
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

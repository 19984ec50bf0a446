"""The in-process engine: a cohort is answered in chunks that share one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fedadapt.engines.chunks import ChunkSize, cut
from fedadapt.engines.engine import MakeEngine
from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.serve import Party, reader, serve
from fedadapt.registry import register


class LocalEngine:
    """Simulates every client of a federation in this process.

    Args:
        party: holds all clients' data.
        chunk: clients trained together; None picks. It changes speed and memory, not results.
        on_clients: told after every chunk how many clients are done.
    """

    cpu_s = 0.0

    def __init__(
        self, party: Party, chunk: int | None = None, on_clients: Callable[[int], None] = lambda count: None
    ) -> None:
        self.party = party
        self.chunk = chunk
        self.on_clients = on_clients

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Serves the requests chunk by chunk."""
        replies: list[Reply] = []
        read = reader(self.party)
        for chunk in cut(requests, self.party, self.chunk):
            replies += serve(chunk, self.party, read)
            self.on_clients(len(replies))
        return replies


@register("engine", "local")
@contextmanager
def local(chunk: ChunkSize | None = None) -> Iterator[MakeEngine]:
    """All clients in this process.

    Args:
        chunk: clients trained together; none: by itself.
    """
    yield lambda party, blueprint: LocalEngine(party, chunk)

"""The in-process engine: a cohort is answered in chunks that share one forward pass, side by side in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fedadapt.engines.chunks import ChunkSize, choose_lanes, cut
from fedadapt.engines.engine import MakeEngine
from fedadapt.engines.lanes import Lanes
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
        self._lanes: Lanes | None = None

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Serves the requests chunk by chunk, on a processor as many chunks side by side as torch has threads."""
        replies: list[Reply] = []
        for answer in self._answers(requests):
            replies += answer
            self.on_clients(len(replies))
        return replies

    def _answers(self, requests: Sequence[Request]) -> Iterator[list[Reply]]:
        read = reader(self.party)
        on_gpu = next(iter(self.party.model.start.values())).is_cuda
        threads = 1 if on_gpu else torch.get_num_threads()
        lanes = choose_lanes(self.party, threads, self.chunk)
        chunks = cut(requests, self.party, self.chunk, lanes)
        count = min(lanes, len(chunks))
        if count < 2:
            yield from (serve(chunk, self.party, read) for chunk in chunks)
            return
        if self._lanes is None:
            self._lanes = Lanes(self.party, lanes)
        yield from self._lanes.answers(chunks, read, threads // count)


@register("engine", "local")
@contextmanager
def local(chunk: ChunkSize | None = None) -> Iterator[MakeEngine]:
    """All clients in this process, on a processor in as many threads as torch has.

    Args:
        chunk: clients trained together; none: by itself.
    """
    yield lambda party, blueprint: LocalEngine(party, chunk)

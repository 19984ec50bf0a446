"""How a cohort is cut into chunks, each of which shares one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from pydantic import Field

from fedadapt.federation.messages import Request
from fedadapt.federation.serve import Party

ChunkSize: TypeAlias = Annotated[int, Field(ge=1)]

CHUNK_IMAGES = 256
"""Images a step of one chunk should hold: enough to feed the machine, few enough to stay in its caches."""


def cut(
    requests: Sequence[Request], party: Party, size: int | None, processes: int = 1
) -> list[Sequence[Request]]:
    """The requests in chunks, clients of like size together so that little is padded; the smallest come first.

    Who is in a chunk follows from the arguments alone, never from who was faster.

    Args:
        requests: of one round.
        party: holds the clients' data.
        size: clients in a chunk; None picks by `CHUNK_IMAGES`, and so that every process gets one.
        processes: that will share the work.
    """
    spread = -(-len(requests) // processes)
    size = size or max(1, min(CHUNK_IMAGES // party.train.batch_size, spread))
    size = min(size, party.model.max_clients or size)
    by_size = sorted(requests, key=lambda r: (len(party.indices[r.client]), r.client))
    return [by_size[begin : begin + size] for begin in range(0, len(by_size), size)]

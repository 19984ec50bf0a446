"""How a cohort is cut into chunks, each of which shares one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from pydantic import Field

from fedadapt.federation.messages import Request
from fedadapt.federation.serve import Party

ChunkSize: TypeAlias = Annotated[int, Field(ge=1)]

CACHE_BYTES = 2 * 2**20
"""What the largest map of a step may take on a processor, so that the next layer finds it in the cache."""

MEMORY_BYTES = 2**30
"""What the tensors of all clients of a chunk may take together."""

LANES_BYTES = 4 * 2**30
"""What those of all chunks that are trained side by side may take."""


def choose_chunk(party: Party) -> int:
    """How many clients to train together, from shapes alone, so that it is the same wherever a run goes on.

    On a processor a step's largest map has to fit the cache: with more clients there are fewer calls, but each waits
    for memory. Everywhere maps, gradients, trained tensors and the optimiser's state have to fit the memory.
    """
    largest, _ = (party.features or party.model).map_values(party.split.images.shape[1:])
    fits = MEMORY_BYTES // _bytes_of_client(party)
    if next(iter(party.model.start.values())).device.type == "cpu":
        fits = min(fits, CACHE_BYTES // (4 * party.train.batch_size * largest))
    return max(1, fits)


def choose_lanes(party: Party, threads: int, size: int | None) -> int:
    """How many chunks to train side by side, so that they fit the memory together; from shapes alone.

    Args:
        party: whose clients are trained.
        threads: the most.
        size: clients in a chunk; None for as many as `choose_chunk` says.
    """
    return max(1, min(threads, LANES_BYTES // (_bytes_of_client(party) * (size or choose_chunk(party)))))


def _bytes_of_client(party: Party) -> int:
    """What a client takes in training."""
    _, together = (party.features or party.model).map_values(party.split.images.shape[1:])
    values = sum(tensor.numel() for tensor in party.model.start.values())
    # Forward and backward keep about two of each map; start, end, gradient and two moments of each tensor.
    return 4 * (2 * party.train.batch_size * together + 5 * values)


def cut(
    requests: Sequence[Request], party: Party, size: int | None, processes: int = 1
) -> list[Sequence[Request]]:
    """The requests in chunks, clients of like size together so that little is padded; the smallest come first.

    Who is in a chunk follows from the arguments alone, never from who was faster.

    Args:
        requests: of one round.
        party: holds the clients' data.
        size: clients in a chunk; None for as many as `choose_chunk` says, and so that every process gets one.
        processes: that will share the work.
    """
    spread = -(-len(requests) // processes)
    size = size or max(1, min(choose_chunk(party), spread))
    size = min(size, party.model.max_clients or size)
    by_size = sorted(requests, key=lambda r: (len(party.indices[r.client]), r.client))
    return [by_size[begin : begin + size] for begin in range(0, len(by_size), size)]

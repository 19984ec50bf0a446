"""Chunks side by side in the threads of one process, each with layers of its own around the same frozen tensors.

One step on few threads has more to compute between two waits than one on many: small clients leave most of many
threads idle.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue

import torch

from fedadapt.adapters import AdaptedModel
from fedadapt.errors import FrameError
from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.serve import Party, Read, serve
from fedadapt.federation.warm_start import ROUND
from fedadapt.params import Streams
from fedadapt.training.processor import tuned_processor


class Lanes:
    """Threads of this process that serve chunks.

    Args:
        party: whose clients are simulated; its memory is read and written by the calling thread alone.
        count: how many threads.
    """

    def __init__(self, party: Party, count: int) -> None:
        self._party = party
        self._pool = ThreadPoolExecutor(count, "lane")
        self._idle: SimpleQueue[Party] = SimpleQueue()
        for _ in range(count):
            self._idle.put(_beside(party))

    def answers(self, chunks: Sequence[Sequence[Request]], read: Read, threads: int) -> Iterator[list[Reply]]:
        """The replies to each chunk, in the order of the chunks.

        Args:
            chunks: of one round.
            read: turns requests into streams.
            threads: to compute with, of each lane.
        """
        memory = self._party.memory
        started = []
        for chunk in chunks:
            for request in chunk:
                # What all clients have in common is looked at here, before lanes would do it at once; what is wrong with
                # it is found again where it is looked at. Before the first round there is nothing to read.
                if request.round != ROUND:
                    with suppress(FrameError):
                        read(request)
            kept = {r.client: memory[r.client] for r in chunk if r.client in memory}
            started.append(self._pool.submit(self._answer, chunk, read, kept, threads))
        try:
            for future in started:
                replies, written = future.result()
                memory.update(written)
                yield replies
        finally:
            # Whoever stops at once, or has lost the round, does not wait for what was not begun.
            for future in started:
                future.cancel()

    def _answer(
        self, chunk: Sequence[Request], read: Read, kept: Mapping[int, Streams], threads: int
    ) -> tuple[list[Reply], dict[int, Streams]]:
        party, now = self._idle.get(), dict(kept)
        try:
            torch.set_num_threads(threads)
            with tuned_processor():
                replies = serve(chunk, replace(party, memory=now), read)
        finally:
            self._idle.put(party)
        return replies, {
            client: streams for client, streams in now.items() if streams is not kept.get(client)
        }


def _beside(party: Party) -> Party:
    """The same party with modules of its own: calling one swaps its tensors, which two threads cannot do at once."""
    features = party.features
    return replace(
        party,
        model=_copied(party.model),
        features=None if features is None else features.beside(_copied(features.model)),
    )


def _copied(model: AdaptedModel) -> AdaptedModel:
    """A model with other module objects, and all tensors shared."""
    tensors = [*model.module.parameters(), *model.module.buffers()]
    module, passing = copy.deepcopy((model.module, model.passing), {id(tensor): tensor for tensor in tensors})
    return model.part(module, passing)

"""The far side of an engine that has processes: a party, made there once, that answers chunks of requests.

Only messages go in and come out, which are bytes, numbers and text; nothing is remembered between chunks.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from fedadapt.engines.engine import MakeParty
from fedadapt.federation.messages import EVERYONE, Reply, Request
from fedadapt.federation.serve import Party, serve
from fedadapt.params import Streams, from_bytes, to_bytes
from fedadapt.training.processor import tuned_processor


@dataclass(frozen=True)
class Answer:
    """What an actor gives back for a chunk.

    Args:
        replies: one to each request.
        memory: what clients keep from now on.
        cpu_s: processor seconds it took.
    """

    replies: list[Reply]
    memory: dict[int, bytes]
    cpu_s: float


class Actor:
    """What runs on the cluster: a party, made once, that answers chunks."""

    def begin(
        self, make: MakeParty, document: str, columns: Mapping[str, Any], device: str, threads: int
    ) -> dict[str, str]:
        """Makes the party, as a `Blueprint` says.

        Returns:
            Where this is, and what it must have in common with the driver.
        """
        torch.set_num_threads(threads)
        self._party = make(document, columns, device)
        return {"where": f"process {os.getpid()} on {socket.gethostname()}"} | identify(self._party)

    def answer(
        self, asked: Sequence[tuple[Request, int]], memory: Mapping[int, bytes], *shared: bytes
    ) -> Answer:
        """Serves a chunk of a round.

        Args:
            asked: requests without their frames, and the place of each one's in `shared`.
            memory: what clients keep.
            shared: first what they hold together, empty if that is nothing; then the frames.
        """
        begun = time.process_time()
        given = {client: from_bytes(kept) for client, kept in memory.items()}
        if shared[0]:
            given[EVERYONE] = from_bytes(shared[0])
        now: dict[int, Streams] = dict(given)
        requests = [replace(request, frame=shared[place]) for request, place in asked]
        with tuned_processor():
            replies = serve(requests, replace(self._party, memory=now))
        written = {client: to_bytes(kept) for client, kept in now.items() if kept is not given.get(client)}
        return Answer(replies, written, time.process_time() - begun)


def identify(party: Party) -> dict[str, str]:
    """What the driver and its actors must have in common."""
    identity = party.wire.identity
    return {
        "fedadapt": version("fedadapt"),
        "torch": version("torch"),
        "backbone": identity.backbone.hex(),
        "layout": identity.layout.hex(),
        "codec": identity.codec.hex(),
    }

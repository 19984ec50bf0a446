"""What a federated technique is: a local rule for clients and a step for the server, both pure functions.

An algorithm knows nothing of codecs, engines, devices or models. All it sees are `Params`: on the server
without client axis, on the clients with it, so that one rule serves one client and a whole cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from fedadapt.params import Params, Streams, add


@dataclass(frozen=True)
class Work:
    """What a cohort's local training did; every tensor has a leading client axis K.

    Args:
        start: the shared tensors as downloaded.
        end: the same after training.
        num_steps: local steps of each client.
        lr: the local learning rate.
        download: the streams that came with the request.
        memory: the streams that the clients kept from before.
    """

    start: Params
    end: Params
    num_steps: Int64[Tensor, " K"]
    lr: float
    download: Streams
    memory: Streams


def send_difference(work: Work) -> tuple[Streams, Streams]:
    """The usual upload: what training changed. Nothing is kept."""
    return {"delta": add(work.end, work.start, alpha=-1.0)}, {}


@dataclass(frozen=True)
class LocalRule:
    """What a client does besides following its gradient.

    Args:
        correct: ``(gradients, params, work) -> gradients``, before every step; None to leave them. `work` has
            the start of the round, the download and the memory; its `end` is not yet known.
        finish: ``(work) -> (upload, memory)``, after the last step.
        memory: names of the streams that `finish` keeps on the client; they start as zeros.
    """

    correct: Callable[[Params, Params, Work], Params] | None = None
    finish: Callable[[Work], tuple[Streams, Streams]] = send_difference
    memory: tuple[str, ...] = ()


@dataclass(frozen=True)
class Update:
    """One accepted upload, as the server sees it.

    Args:
        client: who sent it.
        num_examples: samples it trained on.
        num_steps: local steps it took.
        streams: what it sent.
    """

    client: int
    num_examples: int
    num_steps: int
    streams: Streams


@dataclass(frozen=True)
class Algorithm:
    """A federated technique.

    Args:
        name: in the spelling of its paper.
        step: ``(state, updates) -> state``; updates come sorted by client. ``state["model"]`` is the global model.
        init: the server's state from the initial model.
        local: what clients do.
        downloads: streams of the state that clients get, ``"model"`` first.
        uploads: streams that clients send.
    """

    name: str
    step: Callable[[Streams, Sequence[Update]], Streams]
    init: Callable[[Params], Streams] = lambda model: {"model": model}
    local: LocalRule = LocalRule()
    downloads: tuple[str, ...] = ("model",)
    uploads: tuple[str, ...] = ("delta",)

"""A client's whole answer: from the requests of one or many clients to their replies.

On a real node the list holds one request. In a simulation it holds a chunk of the cohort, whose tensors are
stacked on the client axis and trained together. It is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from fedadapt.adapters import AdaptedModel
from fedadapt.algorithms import Algorithm
from fedadapt.algorithms.algorithm import Work
from fedadapt.data.augment import Augment
from fedadapt.data.batches import cohort_batches
from fedadapt.data.dataset import Split
from fedadapt.errors import ClientError, FrameError
from fedadapt.federation import versions
from fedadapt.federation.frame import Kind
from fedadapt.federation.messages import EVERYONE, Reply, Request, Wire
from fedadapt.params import Params, Streams, add, expand, pick, stack, zeros_like
from fedadapt.seeds import Seeds
from fedadapt.training.config import TrainConfig
from fedadapt.training.local import train

KEPT = "kept"
"""The memory stream of the tensors that the plan lets clients keep."""

RESIDUAL = "residual:"
"""Before the names of the memory streams that hold what packing an upload lost."""

UPLOAD_SCALARS = ("num_examples", "num_steps", "loss")
"""The scalars of an upload, by position."""


@dataclass(frozen=True)
class Party:
    """What a site, or a simulation of many, has to work with.

    Args:
        model: with the adapter attached.
        wire: shared with the server.
        algorithm: likewise.
        train: likewise.
        rounds: of the run, for the rate's schedule.
        split: the images held here.
        indices: which of them each client trains on, by client number.
        augment: applied in training.
        mean: pixel moments for normalisation.
        std: likewise.
        seeds: of the run.
        memory: what clients keep from round to round, by client number; under `EVERYONE` the version of the
            download that the site holds for all of them.
    """

    model: AdaptedModel
    wire: Wire
    algorithm: Algorithm
    train: TrainConfig
    rounds: int
    split: Split
    indices: Sequence[Int64[Tensor, " _"]]
    augment: Augment
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seeds: Seeds
    memory: MutableMapping[int, Streams]


def serve(requests: Sequence[Request], party: Party) -> list[Reply]:
    """Answers requests of one round, each from a different client.

    A client that cannot do its part answers with the reason instead of raising: it holds no samples, its
    request is damaged, or its training diverged.
    """
    replies: dict[int, Reply] = {}
    able: list[tuple[Request, Streams]] = []
    read = _reader(party)
    for request in requests:
        if len(party.indices[request.client]) == 0:
            replies[request.client] = _failed(request, "client holds no training samples")
            continue
        try:
            able.append((request, read(request)))
        except FrameError as error:
            replies[request.client] = _failed(request, str(error))
    for reply in _train_together(able, party):
        replies[reply.client] = reply
    return [replies[request.client] for request in requests]


def _reader(party: Party) -> Callable[[Request], Streams]:
    """What turns requests into streams; clients that got the same share what it says, as one object."""
    decoded: dict[int, Streams] = {}

    def read(request: Request) -> Streams:
        if id(request.frame) not in decoded:
            if party.wire.delta:
                decoded[id(request.frame)] = _take_version(request, party)
            else:
                message = party.wire.read(
                    request.frame, Kind.DOWNLOAD, request.round, EVERYONE, party.algorithm.downloads, 0
                )
                decoded[id(request.frame)] = message.streams
        return decoded[id(request.frame)]

    return read


def _take_version(request: Request, party: Party) -> Streams:
    """What a download leads to from what the site holds, which it remembers."""
    if EVERYONE in party.memory:
        held = versions.recall(party.memory[EVERYONE])
    else:
        start = party.algorithm.init(
            {n: party.model.start[n].cpu().clone() for n in party.wire.plan.layout()}
        )
        held = versions.Version(0, {stream: start[stream] for stream in party.algorithm.downloads})
    taken = versions.take(party.wire, request.frame, request.round, held)
    if taken is not held:
        party.memory[EVERYONE] = versions.remember(taken)
    return taken.streams


def _failed(request: Request, reason: str) -> Reply:
    return Reply(request.round, request.client, failure=reason)


def _train_together(able: Sequence[tuple[Request, Streams]], party: Party) -> list[Reply]:
    """Trains the clients as one cohort; if that diverges, one by one, to find out whose fault it was."""
    if not able:
        return []
    try:
        return _train_cohort(able, party)
    except ClientError as error:
        if len(able) == 1:
            return [_failed(able[0][0], str(error))]
        return [reply for one in able for reply in _train_together([one], party)]


def _train_cohort(able: Sequence[tuple[Request, Streams]], party: Party) -> list[Reply]:
    requests = [request for request, _ in able]
    clients, round_ = [request.client for request in requests], requests[0].round
    device = next(iter(party.model.start.values())).device
    download = _stack_streams([streams for _, streams in able], device)
    remembered = [_recall(party, client) for client in clients]
    memory = _stack_streams(remembered, device)
    start = {**download["model"], **memory.pop(KEPT, {})}
    shared = list(download["model"])
    lr = party.train.rate(round_, party.rounds)
    begun = Work(
        download["model"],
        download["model"],
        torch.zeros(len(clients), dtype=torch.int64),
        lr,
        download,
        memory,
    )
    rule = party.algorithm.local
    correct = None if rule.correct is None else (lambda g, p: rule.correct(g, p, begun))  # type: ignore[misc]
    trained = train(
        party.model,
        {name: start[name] for name in party.model.start},
        cohort_batches(
            party.split,
            [party.indices[client] for client in clients],
            clients,
            round=round_,
            seeds=party.seeds,
            batch_size=party.train.batch_size,
            epochs=party.train.epochs,
            augment=party.augment,
        ),
        party.train,
        lr=lr,
        mean=party.mean,
        std=party.std,
        correct=correct,
    )
    end = {name: trained.params[name] for name in shared}
    upload, kept = rule.finish(Work(begun.start, end, trained.num_steps, lr, download, memory))
    kept_tensors = {name: trained.params[name] for name in party.wire.plan.kept()}
    replies = []
    for place, client in enumerate(clients):
        own = {stream: pick(params, place) for stream, params in kept.items()}
        if kept_tensors:
            own[KEPT] = pick(kept_tensors, place)
        scalars = (
            float(len(party.indices[client])),
            float(trained.num_steps[place]),
            float(trained.loss[place]),
        )
        streams = {stream: pick(upload[stream], place) for stream in party.algorithm.uploads}
        try:
            frame, lost = _pack(party, round_, client, streams, scalars)
        except FrameError as error:
            replies.append(Reply(round_, client, failure=str(error)))
            continue
        own |= lost
        if own:
            party.memory[client] = {s: {n: t.cpu().clone() for n, t in p.items()} for s, p in own.items()}
        replies.append(Reply(round_, client, frame))
    return replies


def _pack(
    party: Party, round: int, client: int, streams: Streams, scalars: Sequence[float]
) -> tuple[bytes, Streams]:
    """The frame of an upload; and with error feedback what it lost, after adding what the last one lost.

    ``e <- (u + e) - decode(encode(u + e))`` with u the upload and e what the client keeps, zero at first.

    Source:
        S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, *Error Feedback Fixes SignSGD and other Gradient
        Compression Schemes*, ICML 2019, algorithm 2.
    """
    wire = party.wire
    if not wire.error_feedback:
        return wire.write(Kind.UPLOAD, round, client, streams, scalars), {}
    streams = {stream: {n: t.cpu() for n, t in params.items()} for stream, params in streams.items()}
    residual = _residual(party, client)
    wanted = {s: add(params, residual[s]) if s in residual else params for s, params in streams.items()}
    frame = wire.write(Kind.UPLOAD, round, client, wanted, scalars)
    # What the server will read, so that nothing is counted as lost that arrives, or the other way round.
    said = wire.read(frame, Kind.UPLOAD, round, client, list(streams), len(scalars)).streams
    return frame, {RESIDUAL + s: add(wanted[s], said[s], alpha=-1.0) for s in streams}


def _residual(party: Party, client: int) -> Streams:
    """What packing a client's last upload lost; nothing if there was none."""
    if client not in party.memory:
        return {}
    kept = party.memory[client].items()
    return {s.removeprefix(RESIDUAL): params for s, params in kept if s.startswith(RESIDUAL)}


def _recall(party: Party, client: int) -> Streams:
    """What a client kept, or what it starts with if it was never asked before."""
    if client in party.memory:
        return {s: params for s, params in party.memory[client].items() if not s.startswith(RESIDUAL)}
    shared = {name: party.model.start[name] for name in party.wire.plan.layout()}
    fresh: Streams = {stream: zeros_like(shared) for stream in party.algorithm.local.memory}
    kept: Params = {name: party.model.start[name] for name in party.wire.plan.kept()}
    return {**fresh, KEPT: kept} if kept else fresh


def _stack_streams(items: Sequence[Streams], device: torch.device) -> Streams:
    """The clients' streams on the client axis; those that all share are copied out once."""
    first = items[0]
    if all(streams is first for streams in items):
        return {s: {n: t.to(device) for n, t in expand(p, len(items)).items()} for s, p in first.items()}
    return {s: {n: t.to(device) for n, t in stack([i[s] for i in items]).items()} for s in first}

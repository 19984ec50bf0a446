"""A client's whole answer: from the requests of one or many clients to their replies.

On a real node the list holds one request. In a simulation it holds a chunk of the cohort, whose tensors are
stacked on the client axis and trained together. It is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedadapt.adapters import AdaptedModel
from fedadapt.algorithms import Algorithm
from fedadapt.algorithms.algorithm import Origin, Work
from fedadapt.data.augment import Augment
from fedadapt.data.batches import cohort_batches
from fedadapt.data.dataset import Split
from fedadapt.errors import ClientError, FrameError
from fedadapt.federation import versions
from fedadapt.federation.features import Features
from fedadapt.federation.frame import Kind
from fedadapt.federation.messages import EVERYONE, Reply, Request, Wire
from fedadapt.federation.warm_start import ROUND, answer_warm_start, warm_start
from fedadapt.params import Params, Streams, add, expand, laid_out, pick, stack, zeros_like
from fedadapt.seeds import Seeds
from fedadapt.training.config import TrainConfig
from fedadapt.training.evaluate import mean_losses
from fedadapt.training.local import Beside, Hooks, Trained, train

KEPT = "kept"
"""The memory stream of the tensors that the plan lets clients keep."""

PERSONAL = "personal"
"""The memory stream of a client's second model."""

RESIDUAL = "residual:"
"""Before the names of the memory streams that hold what packing an upload lost."""

UPLOAD_SCALARS = ("num_examples", "num_steps", "loss")
"""The scalars of an upload, by position; those of the algorithm follow."""


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
        features: kept, where an image has the same in every round; None to compute them.
    """

    model: AdaptedModel
    wire: Wire
    algorithm: Algorithm
    train: TrainConfig
    rounds: int
    split: Split
    indices: Sequence[Int64[Tensor, " _"]] | Mapping[int, Int64[Tensor, " _"]]
    augment: Augment
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seeds: Seeds
    memory: MutableMapping[int, Streams]
    features: Features | None = None


Read = Callable[[Request], Streams]


def serve(requests: Sequence[Request], party: Party, read: Read | None = None) -> list[Reply]:
    """Answers requests of one round, each from a different client.

    A client that cannot do its part answers with the reason instead of raising: it holds no samples, its
    request is damaged, or its training diverged.

    Args:
        requests: what is asked.
        party: who answers.
        read: the `reader` that several calls of a round share; None for one of this call's own.
    """
    replies: dict[int, Reply] = {}
    able: list[tuple[Request, Streams]] = []
    read, warm = read or reader(party), warm_start(party.model, party.wire)
    for request in requests:
        if len(party.indices[request.client]) == 0:
            replies[request.client] = _failed(request, "client holds no training samples")
            continue
        if warm is not None and request.round == ROUND:
            split, own = party.split, party.indices[request.client]
            replies[request.client] = answer_warm_start(warm, request, split, own, party.mean, party.std)
            continue
        try:
            able.append((request, read(request)))
        except FrameError as error:
            replies[request.client] = _failed(request, str(error))
    for reply in _train_together(able, party):
        replies[reply.client] = reply
    return [replies[request.client] for request in requests]


def reader(party: Party) -> Read:
    """What turns the requests of a round into streams; clients that got the same share what it says, as one object."""
    decoded: dict[int, Streams | FrameError] = {}

    def read(request: Request) -> Streams:
        key = id(request.frame)
        if key not in decoded:
            try:
                decoded[key] = _read(request, party)
            except FrameError as error:
                decoded[key] = error
        found = decoded[key]
        if isinstance(found, FrameError):
            raise found
        return found

    return read


def _read(request: Request, party: Party) -> Streams:
    if party.wire.delta:
        return take_version(request, party)
    return party.wire.read(
        request.frame, Kind.DOWNLOAD, request.round, EVERYONE, party.algorithm.downloads, 0
    ).streams


def take_version(request: Request, party: Party) -> Streams:
    """What a download leads to from what the site holds, which it remembers.

    Raises:
        FrameError: it does not start from what is held, or is damaged.
    """
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
    rule, plan = party.algorithm.local, party.wire.plan
    efforts = [request.effort for request, _ in able]
    device = next(iter(party.model.start.values())).device
    download = _stack_streams([streams for _, streams in able], device)
    memory = _stack_streams([_recall(party, client) for client in clients], device)
    lr = party.train.rate(round_, party.rounds)
    given = {**download["model"], **memory.pop(KEPT, {})}
    whole = {name: given[name] for name in party.model.start}
    learnt = [name for name in download["model"] if name not in party.model.moving]
    start = {name: whole[name] for name in learnt}
    nothing = torch.zeros(len(clients), dtype=torch.int64)
    begun = Work(start, start, nothing, lr, party.train, download, memory, _start_loss(party, whole, clients))
    trained = _train_phases(party, clients, efforts, round_, begun, whole)
    end = {name: trained.params[name] for name in learnt}
    done = replace(begun, end=end, num_steps=trained.num_steps)
    upload, kept = rule.finish(done)
    # What moves with the batches is no algorithm's business: its change is sent, and nothing else is said of it.
    change = {name: trained.params[name] - whole[name] for name in download["model"] if name not in end}
    for stream in party.algorithm.uploads:
        upload[stream] = upload[stream] | (change if stream == "delta" else zeros_like(change))
    # In the order in which they are sent, a client in each row: what it sends is then one piece of memory.
    upload = {
        stream: laid_out({name: upload[stream][name] for name in plan.sent()})
        for stream in party.algorithm.uploads
    }
    if plan.kept():
        kept = kept | {KEPT: {name: trained.params[name] for name in plan.kept()}}
    if trained.beside is not None:
        kept = kept | {PERSONAL: trained.beside}
    values = [scalar(done) for scalar in rule.scalars.values()]
    replies = []
    for place, client in enumerate(clients):
        own = {stream: pick(params, place) for stream, params in kept.items()}
        scalars = (
            float(len(party.indices[client])),
            float(trained.num_steps[place]),
            float(trained.loss[place]),
            *(float(value[place]) for value in values),
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


def _start_loss(party: Party, whole: Params, clients: Sequence[int]) -> Float[Tensor, " K"] | None:
    """Each client's loss on its samples before it trains, if the algorithm wants it."""
    if not party.algorithm.local.measures_start:
        return None
    indices = [party.indices[client] for client in clients]
    return mean_losses(party.model, whole, party.split, indices, party.mean, party.std)


def _train_phases(
    party: Party, clients: Sequence[int], efforts: Sequence[float], round: int, begun: Work, whole: Params
) -> Trained:
    """Local training in the phases of the algorithm, each from where the one before ended.

    Who does less than all does so in every phase, so that what a later phase trains is not always left out.
    """
    phases = party.algorithm.local.phases
    left = party.train.epochs - sum(phase.epochs or 0 for phase in phases)
    hooks = _hooks(party, clients, begun, whole)
    losses: list[Tensor] = []
    params, steps = whole, begun.num_steps
    kept = party.features
    split = party.split if kept is None else kept.labels_only
    for phase in phases:
        epochs = left if phase.epochs is None else phase.epochs
        if epochs == 0:
            continue
        resting = {n for n in whole if phase.groups is not None and party.model.groups[n] not in phase.groups}
        trained = train(
            party.model if kept is None else kept.model,
            params,
            cohort_batches(
                split,
                [party.indices[client] for client in clients],
                clients,
                round=round,
                seeds=party.seeds,
                batch_size=party.train.batch_size,
                epochs=epochs,
                augment=party.augment,
                efforts=efforts,
                purpose=f"batches of phase {len(losses)}" if losses else "batches",
            ),
            party.train,
            lr=begun.lr,
            mean=party.mean,
            std=party.std,
            hooks=replace(hooks, frozen=resting),
            inputs=None if kept is None else kept.inputs,
        )
        params, steps = trained.params, steps.to(trained.num_steps.device) + trained.num_steps
        losses.append(trained.loss * (epochs / party.train.epochs))
    return replace(trained, num_steps=steps, loss=torch.stack(losses).sum(0))


def _hooks(party: Party, clients: Sequence[int], begun: Work, whole: Params) -> Hooks:
    """The algorithm's local rule, tied to what this cohort got and keeps."""
    rule = party.algorithm.local
    gradient, adjust, contrast, personal = rule.gradient, rule.adjust, rule.contrast, rule.personal
    hooks = Hooks()
    if gradient is not None:
        hooks = replace(hooks, gradient=lambda plain: gradient(plain, begun))
    if adjust is not None:
        labels = [party.split.labels[party.indices[client]] for client in clients]
        device = next(iter(whole.values())).device
        hooks = replace(
            hooks, adjust=lambda logits: adjust(logits, _counts(labels, logits.shape[2]).to(device))
        )
    if contrast is not None:
        streams = begun.download | begun.memory
        models = [whole | streams[reference] for reference in contrast.references]
        hooks = replace(hooks, contrast=contrast.penalty, references=models)
    if personal is not None:
        own = begun.memory[PERSONAL]
        hooks = replace(hooks, beside=Beside(own, lambda g, v, w: personal.gradient(g, v, w, begun)))
    return hooks


def _counts(labels: Sequence[Tensor], classes: int) -> Int64[Tensor, "K D"]:
    """How many samples of each class each client holds."""
    return torch.stack([own.bincount(minlength=classes) for own in labels])


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
    start, rule, plan = party.model.start, party.algorithm.local, party.wire.plan
    shared = {name: start[name] for name in plan.layout() if name not in party.model.moving}
    fresh = {
        stream: zeros_like(shared) if origin is Origin.ZEROS else dict(shared)
        for stream, origin in rule.memory.items()
    }
    if plan.kept():
        fresh[KEPT] = {name: start[name] for name in plan.kept()}
    if rule.personal is not None:
        groups = rule.personal.groups
        fresh[PERSONAL] = {
            n: t for n, t in start.items() if groups is None or party.model.groups[n] in groups
        }
    return fresh


def completed(model: AdaptedModel, shared: Params) -> Params:
    """All tensors of a model on its device, with the shared ones in their place; what clients keep is at its start."""
    device = next(iter(model.start.values())).device
    return {name: shared.get(name, start).to(device) for name, start in model.start.items()}


def predicting(algorithm: Algorithm, shared: Params, memory: Streams) -> Params:
    """The tensors that a client predicts with: the global ones, and what it keeps in their place.

    Args:
        algorithm: says how a personal model is used.
        shared: all tensors of the global model.
        memory: what the client keeps; empty for one that was never asked.
    """
    device = next(iter(shared.values())).device
    own = shared | {name: tensor.to(device) for name, tensor in memory.get(KEPT, {}).items()}
    personal = algorithm.local.personal
    if personal is None or PERSONAL not in memory:
        return own
    return own | personal.use({name: tensor.to(device) for name, tensor in memory[PERSONAL].items()}, own)


def _stack_streams(items: Sequence[Streams], device: torch.device) -> Streams:
    """The clients' streams on the client axis; those that all share are copied out once."""
    first = items[0]
    if all(streams is first for streams in items):
        return {s: {n: t.to(device) for n, t in expand(p, len(items)).items()} for s, p in first.items()}
    return {s: {n: t.to(device) for n, t in stack([i[s] for i in items]).items()} for s in first}

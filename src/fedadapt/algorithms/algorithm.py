"""What a federated technique is: what clients do to their gradients, and what the server does with their updates.

An algorithm knows nothing of codecs, engines, devices or models. All it sees are `Params`: on the server
without client axis, on the clients with it, so that one rule serves one client and a whole cohort. It is made of
slots, each with a neutral value that is FedAvg; `chain` puts algorithms together that fill different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedadapt.errors import ConfigError
from fedadapt.params import Group, Params, Streams, add, weighted_mean
from fedadapt.training.config import TrainConfig
from fedadapt.training.local import Gradient


@dataclass(frozen=True)
class Work:
    """What a cohort's local training did; every tensor has a leading client axis K.

    Args:
        start: the shared tensors that are trained, as downloaded.
        end: the same after training.
        num_steps: local steps of each client.
        lr: the local learning rate of this round.
        config: how clients train.
        download: the streams that came with the request.
        memory: the streams that the clients kept from before.
        start_loss: mean loss over each client's samples before training, if the rule `measures_start`.
    """

    start: Params
    end: Params
    num_steps: Int64[Tensor, " K"]
    lr: float
    config: TrainConfig
    download: Streams
    memory: Streams
    start_loss: Float[Tensor, " K"] | None = None


class Origin(StrEnum):
    """What a stream of a client's memory holds before the client first wrote it."""

    ZEROS = "zeros"
    MODEL = "model"


@dataclass(frozen=True)
class Phase:
    """A stretch of local training in which only some groups move.

    Args:
        groups: those that move; None for all.
        epochs: how many; None for those that the other phases leave.
    """

    groups: frozenset[Group] | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Contrast:
    """A penalty on how the features of a sample differ from those that other models give it.

    Args:
        references: the models, as streams of the download or the memory.
        penalty: ``(features, those of each reference) -> penalty`` of each sample.
    """

    references: tuple[str, ...]
    penalty: Callable[[Float[Tensor, "K B C"], list[Tensor]], Float[Tensor, "K B"]]


@dataclass(frozen=True)
class Personal:
    """A second model of each client, trained on the same batches and never sent.

    Args:
        gradient: ``(gradient, personal, local, work) -> gradients`` of the personal tensors. `local` are the
            tensors that will be sent, at the same step.
        groups: what of the model is personal; None for all that is trained.
        use: ``(personal, global) -> tensors`` that the client predicts with, both without client axis.
    """

    gradient: Callable[[Gradient, Params, Params, Work], Params]
    groups: frozenset[Group] | None = None
    use: Callable[[Params, Params], Params] = lambda personal, model: personal


def send_difference(work: Work) -> tuple[Streams, Streams]:
    """The usual upload: what training changed. Nothing is kept."""
    return {"delta": add(work.end, work.start, alpha=-1.0)}, {}


@dataclass(frozen=True)
class LocalRule:
    """What a client does besides following its gradient. Every neutral value is plain local training.

    Args:
        gradient: ``(gradient, work) -> gradient``, where a gradient is a function of where it is taken. `work`
            has the start of the round, the download and the memory; its `end` is not yet known.
        adjust: ``(logits, class counts) -> logits``, before the loss.
        contrast: a penalty on features.
        personal: a second model, which the client keeps.
        phases: what moves when.
        kept: groups that the client keeps to itself.
        finish: ``(work) -> (upload, memory)``, after the last step.
        scalars: numbers that go with the upload.
        downloads: streams of the server's state that clients get besides the model.
        uploads: streams that `finish` gives besides ``"delta"``.
        memory: streams that `finish` keeps on the client, and what they are at first.
        measures_start: whether the loss before training is needed.
        reads_path: whether `finish` or the server takes the way from start to end for a sum of plain gradients,
            so that no other technique may bend them.
        books: whether `finish` has the client remember what it sends, which is true only if the server takes it as it is.
    """

    gradient: Callable[[Gradient, Work], Gradient] | None = None
    adjust: Callable[[Float[Tensor, "K B D"], Int64[Tensor, "K D"]], Float[Tensor, "K B D"]] | None = None
    contrast: Contrast | None = None
    personal: Personal | None = None
    phases: tuple[Phase, ...] = (Phase(),)
    kept: frozenset[Group] = frozenset()
    finish: Callable[[Work], tuple[Streams, Streams]] = send_difference
    scalars: Mapping[str, Callable[[Work], Float[Tensor, " K"]]] = field(default_factory=dict)
    downloads: tuple[str, ...] = ()
    uploads: tuple[str, ...] = ()
    memory: Mapping[str, Origin] = field(default_factory=dict)
    measures_start: bool = False
    reads_path: bool = False
    books: bool = False


@dataclass(frozen=True)
class Update:
    """One accepted upload, as the server sees it.

    Args:
        client: who sent it.
        num_examples: samples it trained on.
        num_steps: local steps it took.
        streams: what it sent.
        scalars: the numbers that its rule sends, by name.
        staleness: server steps between its download and its arrival; 0 where rounds are synchronous.
    """

    client: int
    num_examples: int
    num_steps: int
    streams: Streams
    scalars: Mapping[str, float] = field(default_factory=dict)
    staleness: int = 0


@dataclass(frozen=True)
class Gathered:
    """What a server step has to work with besides its state.

    Args:
        updates: sorted by client, after preparation.
        weights: of each in a mean.
        num_clients: registered, whether they took part or not.
    """

    updates: Sequence[Update]
    weights: Sequence[float]
    num_clients: int


def add_where(a: Params, b: Params, *, alpha: float) -> Params:
    """``a + alpha * b`` where `b` has the name; what only `a` has, such as what a client keeps, stays."""
    return {n: torch.add(t, b[n], alpha=alpha) if n in b else t for n, t in a.items()}


def by_examples(update: Update) -> float:
    """A client's weight is its number of samples."""
    return update.num_examples


def equally(update: Update) -> float:
    """Every client weighs the same."""
    del update
    return 1.0


def mean_delta(gathered: Gathered) -> Params:
    """The weighted mean of what training changed."""
    deltas = (update.streams["delta"] for update in gathered.updates)
    return weighted_mean(zip(gathered.weights, deltas, strict=True))


def add_delta(state: Streams, delta: Params, gathered: Gathered) -> Streams:
    """The new model is the old one and the aggregate."""
    del gathered
    return {"model": add(state["model"], delta)}


@dataclass(frozen=True)
class ServerRule:
    """What the server does with updates. Every neutral value is FedAvg.

    Args:
        prepare: ``updates -> updates``, one after the other, for instance to clip them.
        weigh: a client's weight in means.
        aggregate: from the updates to one pseudo-update.
        optimise: ``(state, pseudo-update, gathered) -> streams`` of the state that change, ``"model"`` among them.
        fold: ``(state, gathered) -> streams`` of the state that change besides.
        streams: the streams of the state besides the model, from the initial model.
        least: with fewer updates than this a round changes nothing.
        reads_updates: whether `optimise` or `fold` looks at single updates, past the aggregate.
        buffer: updates a step where clients come and go by themselves; None where rounds are synchronous.
    """

    prepare: tuple[Callable[[Sequence[Update]], Sequence[Update]], ...] = ()
    weigh: Callable[[Update], float] = by_examples
    aggregate: Callable[[Gathered], Params] = mean_delta
    optimise: Callable[[Streams, Params, Gathered], Streams] = add_delta
    fold: Callable[[Streams, Gathered], Streams] | None = None
    streams: Callable[[Params], Streams] | None = None
    least: int = 1
    reads_updates: bool = False
    buffer: int | None = None


@dataclass(frozen=True)
class Setting:
    """What a run is, as far as an algorithm has to know before it starts.

    Args:
        num_clients: registered.
        cohort: clients asked in a round.
        train: how they train.
        trained: groups that are trained by gradient.
        shared: groups that travel.
        moving: shared tensors that move with the batches instead, such as averaged norm statistics.
        statistics_move: whether any tensor does, shared or kept.
        lossy: whether packing an upload loses something for good.
        bounded: whether updates of a great norm are refused.
    """

    num_clients: int
    cohort: int
    train: TrainConfig
    trained: frozenset[Group]
    shared: frozenset[Group]
    moving: frozenset[str] = frozenset()
    statistics_move: bool = False
    lossy: bool = False
    bounded: bool = False


Check = Callable[[Setting], str | None]
"""Why an algorithm cannot be used in a setting, in one line; None if it can."""


@dataclass(frozen=True)
class Algorithm:
    """A federated technique.

    Args:
        name: in the spelling of its paper.
        local: what clients do.
        server: what the server does.
        checks: what a run must fulfil.
        num_clients: registered; None, for arithmetic outside a run, if all of them answer.
        moving: tensors whose pseudo-update is only ever added, such as averaged norm statistics: an optimiser
            could drive a variance below zero.
    """

    name: str
    local: LocalRule = LocalRule()
    server: ServerRule = ServerRule()
    checks: tuple[Check, ...] = ()
    num_clients: int | None = None
    moving: frozenset[str] = frozenset()

    @property
    def downloads(self) -> tuple[str, ...]:
        """Streams of the state that clients get, ``"model"`` first."""
        return ("model", *self.local.downloads)

    @property
    def uploads(self) -> tuple[str, ...]:
        """Streams that clients send, ``"delta"`` first."""
        return ("delta", *self.local.uploads)

    def settle(self, setting: Setting) -> Algorithm:
        """The algorithm as it runs in a setting.

        Raises:
            ConfigError: it cannot; the message says why.
        """
        if not setting.shared:
            raise ConfigError(
                f"algorithm {self.name} cannot run here: clients keep every group that is trained, so nothing would "
                "travel; train another adapter, or share norms"
            )
        updates = self.server.buffer or setting.cohort
        if updates < self.server.least:
            raise ConfigError(
                f"algorithm {self.name} cannot run here: a step takes the updates of at least {self.server.least} clients, "
                f"there are {updates}; ask more of them, or fill a larger buffer"
            )
        if self.local.books and setting.lossy:
            raise ConfigError(
                f"algorithm {self.name} cannot run here: clients remember what they send, of which the codec loses a part; "
                "set codec.error_feedback=true"
            )
        if self.local.scalars and setting.bounded:
            raise ConfigError(
                f"algorithm {self.name} cannot run here: it multiplies updates by numbers that clients send "
                f"({', '.join(self.local.scalars)}), past federation.norm_bound; leave one of them out"
            )
        for check in self.checks:
            reason = check(setting)
            if reason is not None:
                raise ConfigError(f"algorithm {self.name} cannot run here: {reason}")
        return replace(self, num_clients=setting.num_clients, moving=setting.moving)

    def init(self, model: Params) -> Streams:
        """The server's state from the initial model."""
        return {"model": model, **(self.server.streams(model) if self.server.streams else {})}

    def step(self, state: Streams, updates: Sequence[Update]) -> Streams:
        """The server's state after a round.

        Args:
            state: not modified.
            updates: sorted by client; as many as `server.least` at the least.
        """
        for prepare in self.server.prepare:
            updates = prepare(updates)
        weights = [self.server.weigh(update) for update in updates]
        gathered = Gathered(updates, weights, self.num_clients or len(updates))
        delta = self.server.aggregate(gathered)
        trained = {stream: _without(params, self.moving) for stream, params in state.items()}
        changed = self.server.optimise(trained, _without(delta, self.moving), gathered)
        changed |= self.server.fold(trained, gathered) if self.server.fold else {}
        moved = {name: state["model"][name] + delta[name] for name in self.moving}
        new = {
            stream: params | _without(changed.get(stream, {}), self.moving)
            for stream, params in state.items()
        }
        return new | {"model": new["model"] | moved}


def _without(params: Params, names: frozenset[str]) -> Params:
    return {name: tensor for name, tensor in params.items() if name not in names}

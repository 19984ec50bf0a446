"""Runs an experiment round by round, each round one transaction; and goes on with one that was stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedadapt.engines.engine import Engine, MakeEngine
from fedadapt.engines.hostile import HostileEngine
from fedadapt.engines.population import PopulationEngine
from fedadapt.errors import ConfigError, Interrupted, RunError
from fedadapt.experiment.blueprint import draw_blueprint
from fedadapt.experiment.build import Experiment, build, data_digest, manifest
from fedadapt.experiment.config import RunConfig, apply_setting, make_config
from fedadapt.experiment.memory import StoredMemory
from fedadapt.experiment.party_data import build_data, need_samples, server_data
from fedadapt.federation.buffered import play_buffered
from fedadapt.federation.measure import Measured, play_measure
from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.round import Played, play
from fedadapt.federation.round_zero import play_warm_start
from fedadapt.federation.serve import predicting
from fedadapt.params import Streams, stack
from fedadapt.registry import names
from fedadapt.runs.records import ClientRecord, RoundRecord
from fedadapt.runs.store import RunStore
from fedadapt.training.evaluate import Scores, evaluate, evaluate_clients, over_clients
from fedadapt.training.processor import tuned_processor

T = TypeVar("T")
Flow = Generator[list[Request], Sequence[Reply], T]
"""An exchange as a generator; see `fedadapt.federation.round.play`."""


class Watcher:
    """Is told what a run does; by itself it does nothing."""

    def begin(self, experiment: Experiment, last_round: int) -> None:
        """The run starts, or goes on after `last_round`."""

    def clients(self, round: int, cohort: int, done: int) -> None:
        """Some clients of a round have answered."""

    def measured(self, round: int, found: Measured) -> None:
        """Sites have said how good the model of a round is."""

    def committed(self, record: RoundRecord) -> None:
        """A round is on disk."""


def run(
    config: RunConfig, folder: Path = Path("runs"), *, overwrite: bool = False, watcher: Watcher | None = None
) -> Path:
    """Runs `config` from the start and returns its run directory, ``folder / config.name``.

    Args:
        config: what to run.
        folder: where run directories are.
        overwrite: replace a finished or stopped run of the same name.
        watcher: told of progress.

    Raises:
        FedadaptError: one of its kinds; nothing half-made is left.
        Interrupted: Ctrl-C; everything up to the last round is on disk.
    """
    path = folder / config.name
    # Before anything is removed, so that a wrong setting does not cost the run that was to be replaced.
    experiment = build(config)
    need_samples(experiment.clients, config)
    with experiment.engine as make_engine:
        if overwrite:
            RunStore.remove(path)
        with RunStore.create(path, manifest(experiment, config.engine.name)) as store:
            _simulate(experiment, store, make_engine, watcher or Watcher())
    return path


def resume(path: Path, settings: Sequence[str] = (), *, watcher: Watcher | None = None) -> Path:
    """Goes on with a run after its last committed round; a finished run is left as it is.

    The result is bit for bit that of a run that was never stopped, on the same machine and versions; it computes with
    as many threads as the run began with.

    Args:
        path: the run's directory.
        settings: of ``engine``, such as ``engine.address=10.0.0.1:6379``, for a cluster that has moved. Another
            engine changes the last bits of a result, and nothing else.
        watcher: told of progress.

    Raises:
        RunError: there is no run, it is in use, or its file is damaged.
        FedadaptError: the data or the backbone are not what the run began with.
    """
    with RunStore.open(path) as store:
        if between_sites(store.manifest):
            raise RunError(f"run {path} is a federation between sites; go on with: fedadapt serve")
        engine = _engine_of(store.manifest["config"], settings)
        with engine as make_engine:
            _simulate(rebuild(store), store, make_engine, watcher or Watcher())
    return path


def _engine_of(began: dict[str, Any], settings: Sequence[str]) -> AbstractContextManager[MakeEngine]:
    """The engine that a run began on, with other settings."""
    document = {"name": began["name"], "engine": dict(began["engine"])}
    for setting in settings:
        if setting.split("=", 1)[0].split(".")[0] != "engine":
            raise ConfigError(f"a run goes on as it began, but for its engine; {setting!r} is none of that")
        apply_setting(document, setting, RunConfig)
    return make_config(document).engine.create("engine")


def between_sites(manifest: Mapping[str, Any]) -> bool:
    """Whether a run was a real federation, in the eyes of its server, and no simulation."""
    return manifest.get("engine", "local") not in names("engine")


def rebuild(store: RunStore) -> Experiment:
    """Makes again what a stored run was made of.

    Raises:
        RunError: the backbone or the data are not those that the run began with.
        FedadaptError: something cannot be made any more.
    """
    began = store.manifest
    experiment = build(make_config(began["config"]), server_data if between_sites(began) else build_data)
    for what, now in (("backbone", experiment.backbone.digest), ("data", data_digest(experiment))):
        if now != began[what]["digest"]:
            raise RunError(
                f"run {store.path} began on {what} {began[what]['digest'][:12]}, here it is {now[:12]}; "
                f"use the same {what} and versions"
            )
    return experiment


def _simulate(experiment: Experiment, store: RunStore, make_engine: MakeEngine, watcher: Watcher) -> None:
    with tuned_processor(store.manifest["hardware"]["threads"]), interruptible() as stop_asked:
        memory = StoredMemory(store)
        engine = make_engine(experiment.party(memory), draw_blueprint(experiment))
        if experiment.attack.upload is not None:
            engine = HostileEngine(
                engine, experiment.wire, experiment.algorithm, experiment.attackers, experiment.attack.upload
            )
        engine = PopulationEngine(engine, experiment.population, experiment.num_steps)
        play_on(experiment, store, engine, memory, watcher, stop_asked)


def play_on(
    experiment: Experiment,
    store: RunStore,
    engine: Engine,
    memory: StoredMemory,
    watcher: Watcher,
    stop_asked: Callable[[], bool] = lambda: False,
) -> None:
    """Plays the rounds that a run still lacks, each one transaction.

    Args:
        experiment: what the run is made of.
        store: the run.
        engine: carries the requests of a round to its clients.
        memory: what clients keep, where this process simulates them.
        watcher: told of progress.
        stop_asked: looked at between rounds.

    Raises:
        RunError: a round cannot be committed.
        EngineError: messages cannot be carried.
        Interrupted: it was asked to stop; everything up to the last round is on disk.
    """
    config = experiment.config
    if store.last_round is None:
        store.commit(_begin(experiment, engine))
    last = store.last_round or 0
    state = store.state()
    watcher.begin(experiment, last)
    for number in range(last + 1, config.rounds + 1):
        if stop_asked():
            raise Interrupted(
                f"stopped after round {number - 1} of {config.rounds}; go on with: fedadapt resume {store.path}"
            )
        begun, cpu_begun = time.perf_counter(), time.process_time() + engine.cpu_s
        cohort = experiment.population.asked(number)
        engine.on_clients = partial(watcher.clients, number, len(cohort))
        played = _drive(_flow(experiment, state, number, cohort), engine)
        state = played.state
        memory.settle(played.clients)
        metrics = _training_metrics(played)
        clients = played.clients
        ledger = played.ledger
        if number % config.evaluate.every == 0 or number == config.rounds:
            if experiment.simulates:
                scores = _measure_clients(experiment, state, memory, clients)
            else:
                measured = _drive(_measure_at_sites(experiment, played, number), engine)
                watcher.measured(number, measured)
                scores = [measured.scores.get(record.client, {}) for record in clients]
                ledger += measured.ledger
            clients = tuple(
                replace(c, accuracy=own.get("accuracy")) for c, own in zip(clients, scores, strict=True)
            )
            metrics |= {**_measure(experiment, state), **over_clients(scores)}
        record = RoundRecord(
            number,
            state,
            metrics,
            clients,
            ledger,
            memory.written(),
            time.perf_counter() - begun,
            time.process_time() + engine.cpu_s - cpu_begun,
        )
        store.commit(record)
        memory.forget()
        watcher.committed(record)


def _begin(experiment: Experiment, engine: Engine) -> RoundRecord:
    """Round 0: the first state, and what it took to get there.

    Raises:
        RunError: the head was to start from class means, and nobody said any.
    """
    begun, cpu_begun = time.perf_counter(), time.process_time() + engine.cpu_s
    played = Played(experiment.first_state(), (), ())
    if experiment.warm is not None:
        everyone = range(experiment.population.pool.num_clients)
        played = _drive(play_warm_start(experiment.warm, experiment.algorithm, everyone), engine)
        if not played.state:
            first = played.clients[0]
            raise RunError(
                f"none of {len(played.clients)} clients gave class means, of which the head was to start; "
                f"client {first.client} {first.outcome}: {first.reason}"
            )
    return RoundRecord(
        0,
        played.state,
        dict(_measure(experiment, played.state)),
        played.clients,
        played.ledger,
        wall_s=time.perf_counter() - begun,
        cpu_s=time.process_time() + engine.cpu_s - cpu_begun,
    )


def _flow(experiment: Experiment, state: Streams, number: int, cohort: list[int]) -> Flow[Played]:
    algorithm, wire = experiment.algorithm, experiment.wire
    if algorithm.server.buffer is None:
        return play(algorithm, wire, state, number, cohort)
    return play_buffered(algorithm, wire, state, number, experiment.population)


def _measure_at_sites(experiment: Experiment, played: Played, number: int) -> Flow[Measured]:
    """How the sites of a round measure what it came to; and after the last round all take it.

    Those that keep tensors, or have models of their own, then have what belongs with them, also where nobody measures.
    """
    data = experiment.config.data
    cohort = [record.client for record in played.clients] if data.measured_at_sites else []
    own = bool(experiment.plan.kept()) or experiment.algorithm.local.personal is not None
    if number == experiment.config.rounds and (own or data.measured_at_sites):
        cohort = list(range(data.num_clients))
    return play_measure(experiment.algorithm, experiment.wire, played, number, cohort)


def _drive(flow: Flow[T], engine: Engine) -> T:
    """One exchange, or several, to what they come to."""
    try:
        requests = next(flow)
        while True:
            requests = flow.send(engine.exchange(requests))
    except StopIteration as stop:
        came_to: T = stop.value
    return came_to


def _measure(experiment: Experiment, state: Streams) -> Scores:
    if not len(experiment.measured_on):
        return {}
    params = experiment.global_params(state)
    return evaluate(experiment.model, params, experiment.measured_on, experiment.mean, experiment.std)


def _measure_clients(
    experiment: Experiment, state: Streams, memory: StoredMemory, records: Sequence[ClientRecord]
) -> list[Scores]:
    """How good the model of each client of the round is, with what it keeps, on its own held-out samples."""
    if not (experiment.config.data.local_test_fraction and experiment.clients.test):
        return [{}] * len(records)
    params = experiment.global_params(state)
    found: list[Scores] = []
    size = experiment.model.max_clients or 32
    for begin in range(0, len(records), size):
        group = [record.client for record in records[begin : begin + size]]
        kept = [dict(memory[c]) if c in memory else {} for c in group]
        stacked = stack([predicting(experiment.algorithm, params, own) for own in kept])
        indices = [experiment.clients.test[client] for client in group]
        split = experiment.dataset.train
        found += evaluate_clients(experiment.model, stacked, split, indices, experiment.mean, experiment.std)
    return found


def _training_metrics(played: Played) -> dict[str, float]:
    """The clients' training loss, weighted by their samples, and their drift."""
    pairs = [(r.num_examples, r.loss) for r in played.clients if r.loss is not None]
    total = sum(count for count, _ in pairs)
    loss = {"train_loss": sum(count * loss for count, loss in pairs) / total} if total else {}
    return {**loss, **played.drift}


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a wish to stop when it suits; the second stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(signum: int, frame: object) -> None:
        del signum, frame
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)

"""The server of a real federation: begins a run, and plays the rounds that it still lacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fedadapt.backbones.weights import save_weights
from fedadapt.engines.engine import Engine
from fedadapt.engines.flower.mandate import Mandate, Patience
from fedadapt.errors import ConfigError, RunError
from fedadapt.experiment.build import Experiment, build, manifest
from fedadapt.experiment.config import PopulationConfig, RunConfig, first_difference, make_config
from fedadapt.experiment.memory import StoredMemory
from fedadapt.experiment.party_data import server_data
from fedadapt.experiment.run import Watcher, play_on, rebuild
from fedadapt.federation.handshake import TERMS, Terms
from fedadapt.federation.measure import Measured
from fedadapt.files import write_whole
from fedadapt.runs import log as run_log
from fedadapt.runs.records import Outcome, RoundRecord
from fedadapt.runs.store import FILE, RunStore
from fedadapt.training.processor import tuned_processor

WEIGHTS, SITES = "backbone.safetensors", "sites.json"


def begin(config: RunConfig, folder: Path) -> Path:
    """Makes the run directory of a federation, or finds the one that was begun with the same recipe.

    Raises:
        ConfigError: the recipe cannot work between sites.
        RunError: the directory holds another run.
    """
    if config.population != PopulationConfig():
        raise ConfigError(
            "section population is about simulated clients, but sites come and go by themselves; leave it out, and say "
            "in section federation when a round closes"
        )
    quorum, asked = config.federation.quorum, config.cohort or config.data.num_clients
    if quorum > asked:
        raise ConfigError(f"federation.quorum is {quorum}, but only {asked} clients are asked in a round")
    if config.attack.name != "none":
        raise ConfigError(
            f"attack is {config.attack.name!r}, but sites are what they are; leave it out, or simulate with: fedadapt run"
        )
    path = folder / config.name
    if (path / FILE).exists():
        with RunStore.read(path) as store:
            began = store.manifest
        if began.get("engine") != "flower":
            raise RunError(f"directory {path} holds a simulation; give this run another name")
        if (before := make_config(began["config"])) != config:
            raise RunError(
                f"directory {path} holds another run ({first_difference(before, config)}); give this one another name"
            )
        return path
    experiment = build(config, server_data)
    if experiment.algorithm.server.buffer:
        raise ConfigError(
            f"algorithm {experiment.algorithm.name!r} takes updates by a simulated clock, and sites have a real one; set "
            "federation.quorum and deadline_s with another algorithm, or simulate with: fedadapt run"
        )
    RunStore.create(path, manifest(experiment, "flower")).close()
    return path


def lead(run: Path, connect: Callable[[Mandate], Engine]) -> None:
    """Plays the rounds that a federation's run still lacks; returns when it is complete.

    Args:
        run: the run's directory, as `begin` made it.
        connect: makes the engine.

    Raises:
        FedadaptError: one of its kinds; what was committed is safe, and calling again goes on from there.
    """
    with RunStore.open(run) as store:
        experiment = rebuild(store)
        if not (run / WEIGHTS).exists():
            metadata = {"backbone": experiment.backbone.name}
            pack = experiment.config.federation.backbone_as.pack
            save_weights(experiment.backbone.module, run / WEIGHTS, metadata, pack)
        terms = _terms(experiment, store, run)
        write_whole(run / TERMS, terms.model_dump_json().encode())
        log = _Log(run, experiment.config.rounds)
        accepted, waits = _Accepted(store), experiment.config.federation
        engine = connect(
            Mandate(
                terms,
                experiment.config.data.num_clients,
                Patience(waits.quorum, waits.deadline_s),
                lambda offset, count: _read(run / WEIGHTS, offset, count),
                lambda client: accepted.rounds.get(client, 0),
                _numbers(run),
                log.say,
            )
        )
        with tuned_processor(store.manifest["hardware"]["threads"]):
            play_on(experiment, store, engine, StoredMemory(store), _Both(log, accepted))


def rounds_done(path: Path) -> tuple[int, int]:
    """The last committed round of a run, 0 if there is none, and how many it shall have."""
    with RunStore.read(path) as store:
        return store.last_round or 0, int(store.manifest["config"]["rounds"])


def write_numbers(path: Path, numbers: Mapping[int, int]) -> None:
    """Writes down which node is which client."""
    write_whole(path / SITES, json.dumps({str(node): client for node, client in numbers.items()}).encode())


def _numbers(path: Path) -> dict[int, int]:
    file = path / SITES
    if not file.exists():
        return {}
    return {int(node): int(client) for node, client in json.loads(file.read_text()).items()}


def _terms(experiment: Experiment, store: RunStore, path: Path) -> Terms:
    document = json.dumps(store.manifest, sort_keys=True)
    channels, height, width = experiment.dataset.train.images.shape[1:]
    return Terms(
        run=hashlib.blake2b(document.encode(), digest_size=16).hexdigest(),
        recipe=experiment.config.model_dump_json(),
        class_names=experiment.dataset.class_names,
        image=(channels, height, width),
        mean=experiment.mean,
        std=experiment.std,
        backbone=experiment.backbone.digest,
        backbone_bytes=(path / WEIGHTS).stat().st_size,
        layout=experiment.plan.digest.hex(),
        codec=experiment.wire.identity.codec.hex(),
        version=version("fedadapt"),
    )


def _read(file: Path, offset: int, count: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(count)


class _Accepted(Watcher):
    """The last round whose update of each client counted."""

    def __init__(self, store: RunStore) -> None:
        self.rounds: dict[int, int] = {}
        for record in store.clients():
            self._note(record.round, record.client, record.outcome)

    def committed(self, record: RoundRecord) -> None:
        for client in record.clients:
            self._note(client.round, client.client, client.outcome)

    def _note(self, round: int, client: int, outcome: Outcome) -> None:
        if outcome is Outcome.ACCEPTED:
            self.rounds[client] = round


class _Log(Watcher):
    """The server's log: a line for whatever happens, one for each round."""

    def __init__(self, run: Path, rounds: int) -> None:
        self._rounds = rounds
        self._named = "accuracy"
        self.say = partial(run_log.say, run)

    def begin(self, experiment: Experiment, last_round: int) -> None:
        # Where sites keep tensors, what is shared is nobody's model: it is named apart.
        self._named = "accuracy of the shared part" if experiment.plan.kept() else "accuracy"
        self.say(f"waiting for sites; {last_round} of {self._rounds} rounds are done")

    def measured(self, round: int, found: Measured) -> None:
        for client, reason in found.failures.items():
            self.say(f"round {round}: client {client} did not measure: {reason}")

    def committed(self, record: RoundRecord) -> None:
        counted = sum(client.outcome is Outcome.ACCEPTED for client in record.clients)
        moved = sum(entry.num_bytes for entry in record.ledger)
        accuracy = record.metrics.get("accuracy")
        measured = "" if accuracy is None else f", {self._named} {100 * accuracy:.2f} %"
        scores = {c.client: c.accuracy for c in record.clients if c.accuracy is not None}
        if scores:
            at = f"{len(scores)} site{'s' * (len(scores) > 1)}"
            measured += f", {100 * record.metrics['client_accuracy_mean']:.2f} % in the mean of {at}"
        self.say(
            f"round {record.round} of {self._rounds}: {counted} of {len(record.clients)} clients{measured}, "
            f"{moved:,} bytes, {record.wall_s:.1f} s"
        )
        if scores:
            listed = ", ".join(f"client {client} {100 * score:.2f} %" for client, score in scores.items())
            self.say(f"round {record.round}: at the sites: {listed}")
        for client in record.clients:
            if client.outcome is not Outcome.ACCEPTED:
                self.say(f"round {record.round}: client {client.client} {client.outcome}: {client.reason}")


class _Both(Watcher):
    """Two watchers as one."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def begin(self, experiment: Experiment, last_round: int) -> None:
        for watcher in self._watchers:
            watcher.begin(experiment, last_round)

    def measured(self, round: int, found: Measured) -> None:
        for watcher in self._watchers:
            watcher.measured(round, found)

    def committed(self, record: RoundRecord) -> None:
        for watcher in self._watchers:
            watcher.committed(record)

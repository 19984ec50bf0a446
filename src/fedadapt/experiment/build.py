"""From a configuration to objects: the only file that knows every room."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedadapt.adapters import AdaptedModel, attach
from fedadapt.algorithms import Algorithm, Setting
from fedadapt.backbones import Backbone
from fedadapt.backbones.rounding import round_backbone
from fedadapt.codecs import make_codec
from fedadapt.data.augment import Augment
from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.skew import label_counts
from fedadapt.engines.engine import MakeEngine
from fedadapt.errors import ConfigError
from fedadapt.experiment.config import RunConfig
from fedadapt.experiment.party_data import Clients, LoadData, build_data
from fedadapt.experiment.population import build_population
from fedadapt.federation.attacks import Attack, choose_attackers
from fedadapt.federation.features import Features, frozen_features
from fedadapt.federation.messages import Wire
from fedadapt.federation.plan import ExchangePlan, make_plan
from fedadapt.federation.population import Population
from fedadapt.federation.serve import Party, completed
from fedadapt.federation.warm_start import WarmStart, warm_start
from fedadapt.params import Group, Params, Streams
from fedadapt.registry import names
from fedadapt.seeds import Seeds

MAX_COUNTED_CLIENTS = 200
"""Runs with more clients do not write down who holds what."""


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, made from its configuration and nothing else."""

    config: RunConfig
    seeds: Seeds
    dataset: Dataset
    measured_on: Split
    clients: Clients
    backbone: Backbone
    model: AdaptedModel
    algorithm: Algorithm
    attack: Attack
    attackers: frozenset[int]
    plan: ExchangePlan
    wire: Wire
    population: Population
    mean: tuple[float, ...]
    std: tuple[float, ...]
    engine: AbstractContextManager[MakeEngine]
    warm: WarmStart | None = None

    @property
    def simulates(self) -> bool:
        """Whether the clients' samples are here, and not at sites."""
        return len(self.clients.train) > 0

    def party(self, memory: MutableMapping[int, Streams]) -> Party:
        """The site that simulates all clients, with their memory."""
        split, held = self._training_data
        return Party(
            model=self.model,
            wire=self.wire,
            algorithm=self.algorithm,
            train=self.config.train,
            rounds=self.config.rounds,
            split=split,
            indices=held,
            augment=self._augment,
            mean=self.mean,
            std=self.std,
            seeds=self.seeds,
            memory=memory,
            features=self.features,
        )

    def num_steps(self, client: int) -> int:
        """The local steps that a client's whole work is in a round."""
        train = self.config.train
        return train.epochs * -(-len(self.clients.train[client]) // train.batch_size)

    @property
    def _augment(self) -> Augment:
        return Augment(pad=self.config.data.augment.pad, flip=self.config.data.augment.flip)

    @cached_property
    def features(self) -> Features | None:
        """Kept for all parties that are made of this."""
        return frozen_features(self.model, self._training_data[0], self._augment, self.mean, self.std)

    @cached_property
    def _training_data(self) -> tuple[Split, Holdings]:
        """The images with the labels that clients train on, and who holds which.

        Clients may share samples, and attackers may hold false labels of theirs: those are in a second copy behind
        the first.
        """
        train, held, falsify = self.dataset.train, self.clients.train, self.attack.labels
        if falsify is None:
            return train, held
        labels = torch.cat([train.labels, falsify(train.labels, self.dataset.num_classes)])
        places = Holdings.drawn(
            len(held),
            lambda client: held[client] + (len(train) if client in self.attackers else 0),
            held.size,
            held.largest,
            f"{held.digest.hex()} with false labels",
        )
        return Split(train.images.repeat(2, 1, 1, 1), labels), places

    @property
    def bytes_once(self) -> int:
        """What of the backbone a client has to fetch before its first round.

        All of it where downloads are steps from it; else what does not come with the first download.
        """
        if self.wire.delta:
            return self.backbone.num_bytes
        own, size = (Group.ADAPTER, Group.HEAD), self.config.federation.backbone_as.num_bytes
        comes = {n: s for n, s in self.plan.layout().items() if self.model.groups[n] not in own}
        return self.backbone.num_bytes - sum(map(size, comes.values()))

    def first_state(self) -> Streams:
        """The server's state before the first round."""
        shared = {name: self.model.start[name].cpu().clone() for name in self.plan.layout()}
        return self.algorithm.init(shared)

    def global_params(self, state: Streams) -> Params:
        """All tensors of the global model; what clients keep is at its pretrained value."""
        return completed(self.model, state["model"])


def build(config: RunConfig, load: LoadData = build_data) -> Experiment:
    """Makes everything that `config` names.

    Args:
        config: what to make.
        load: the data of this party; a simulation holds everybody's.

    Raises:
        FedadaptError: one of its kinds, for whatever cannot be made.
    """
    seeds = Seeds(config.seed)
    policy = config.norms.create("norm policy")
    adapter = config.adapter.create("adapter")
    head = config.head.create("head policy")
    algorithm = config.algorithm.create("algorithm")
    attack = config.attack.create("attack")
    hostile = config.attack.name != "none"
    attackers = (
        choose_attackers(config.data.num_clients, config.attack.share, seeds) if hostile else frozenset()
    )
    coding = build_coding(config)
    engine = config.engine.create("engine")
    build_backbone = config.backbone.create("backbone")
    device = config.train.resolve_device()
    dataset, measured_on, clients = load(config)
    population = build_population(config, clients.held, seeds, algorithm, delta=coding["delta"])
    backbone = build_backbone(dataset.num_classes, seeds.torch("backbone"))
    backbone = round_backbone(backbone, config.federation.backbone_as)
    channels, height, width = dataset.train.images.shape[1:]
    backbone = replace(backbone, image=(channels, height, width))
    mean, std = pixel_moments(backbone, dataset)
    model = attach(backbone, adapter, policy, seeds.torch("adapter"), head)
    still = dict.fromkeys(Group, 0)
    named = dict(model.module.named_parameters()) | dict(model.module.named_buffers())
    for name, tensor in named.items():
        if name not in model.start and not name.endswith("num_batches_tracked"):
            still[model.groups[name]] += tensor.numel()
    plan = make_plan(model, model.kept | algorithm.local.kept, still)
    bounds = config.federation.model_dump(include={"norm_bound", "max_examples"})
    wire = Wire(plan, backbone_digest=model.digest, seeds=seeds, **bounds, **coding)
    algorithm = algorithm.settle(
        Setting(
            config.data.num_clients,
            population.cohort,
            config.train,
            trained=frozenset(row.group for row in plan.rows if row.trained),
            shared=frozenset(plan.groups()),
            moving=frozenset(plan.layout()) & frozenset(model.moving),
            statistics_move=bool(model.moving),
            lossy=wire.lossy,
            bounded=wire.norm_bound is not None,
        )
    )
    model.to(device, config.train.dtype)
    warm = warm_start(model, wire)
    return Experiment(
        config,
        seeds,
        dataset,
        measured_on,
        clients,
        backbone,
        model,
        algorithm,
        attack,
        attackers,
        plan,
        wire,
        population,
        mean,
        std,
        engine,
        warm,
    )


def pixel_moments(backbone: Backbone, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by channel that images are normalised with: the backbone's, or else the data set's.

    Raises:
        ConfigError: neither has any, or they are for another number of channels.
    """
    channels = dataset.train.images.shape[1]
    mean, std = backbone.mean or dataset.mean, backbone.std or dataset.std
    if not mean:
        raise ConfigError(
            f"neither backbone {backbone.name!r} nor source {dataset.name!r} has moments of the pixels; set mean and std of the "
            "source"
        )
    if not len(mean) == len(std) == channels:
        raise ConfigError(
            f"backbone {backbone.name!r} takes images with {len(mean)} channels, data set {dataset.name!r} has {channels}"
        )
    return mean, std


def build_coding(config: RunConfig) -> dict[str, Any]:
    """The arguments of a wire that say how tensors are packed.

    Raises:
        ConfigError: a codec is wrong, or an option is of no use with it.
    """
    chosen, last = config.codec, config.rounds
    codec = make_codec(chosen.name, chosen.__pydantic_extra__).until(last)
    groups = {group: make_codec(name).until(last) for group, name in chosen.groups.items()}
    download = None if chosen.download is None else make_codec(chosen.download).until(last)
    up = [codec, *groups.values()]
    if chosen.error_feedback and all(one.law.exact for one in up):
        raise ConfigError(
            f"codec.error_feedback is true, but codec {codec.name!r} loses nothing; leave it out, or choose a lossy codec"
        )
    down = up if download is None else [download]
    delta = not all(one.law.exact for one in down) if chosen.delta is None else chosen.delta
    fed_back = [
        ("codec.delta", down if delta else []),
        ("codec.error_feedback", up if chosen.error_feedback else []),
    ]
    for key, one in ((key, one) for key, codecs in fed_back for one in codecs):
        # The worst case of a biased codec is a message that is lost whole, which waits; an unbiased one enlarges what it keeps.
        if one.law.loss > 1 or (one.law.loss == 1 and one.law.unbiased):
            raise ConfigError(
                f"{key} feeds back what codec {one.name!r} loses, which grows without end: up to {one.law.loss:.3g} times "
                "what goes in; use rounding=nearest, unbiased=false, smaller blocks or a rotation before it, or set it false"
            )
    return {
        "codec": codec,
        "groups": groups,
        "download": download,
        "delta": delta,
        "error_feedback": chosen.error_feedback,
    }


def manifest(experiment: Experiment, engine: str) -> dict[str, Any]:
    """What a run writes down about itself before its first round; `engine` is what carries its messages."""
    config, dataset = experiment.config, experiment.dataset
    counted = experiment.simulates and len(experiment.clients.train) <= MAX_COUNTED_CLIENTS
    counts = (
        label_counts(dataset.train.labels, experiment.clients.train, dataset.num_classes) if counted else None
    )
    return {
        "config": config.model_dump(mode="json"),
        "engine": engine,
        "seed": config.seed,
        "plan": [
            {
                "group": s.group,
                "trained": s.trained,
                "travels": s.travel,
                "values": s.num_values,
                "bytes": s.num_bytes,
            }
            for s in experiment.plan.summary()
        ],
        "backbone": {
            "name": experiment.backbone.name,
            "digest": experiment.backbone.digest,
            "bytes": experiment.backbone.num_bytes,
            # A site fetches the whole file.
            "once": experiment.bytes_once if engine in names("engine") else experiment.backbone.num_bytes,
            "parameters": experiment.backbone.num_parameters,
        },
        "data": {
            "name": dataset.name,
            "digest": data_digest(experiment),
            "num_classes": dataset.num_classes,
            "class_names": list(dataset.class_names),
            "train": len(dataset.train),
            "test": len(experiment.measured_on),
            "measured_on": "validation" if config.data.validation_fraction else "test",
            "client_counts": None if counts is None else counts.tolist(),
        },
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("fedadapt", "torch", "timm", "numpy", "zstandard", "flwr-datasets")
            },
        },
        "hardware": {
            "machine": platform.machine(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "device": str(config.train.resolve_device()),
        },
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def data_digest(experiment: Experiment) -> str:
    """BLAKE2 over what is trained and measured on, and who holds it: the same digest, the same run."""
    digest = hashlib.blake2b(digest_size=16)
    train, measured = experiment.dataset.train, experiment.measured_on
    for tensor in (train.images, train.labels, measured.images, measured.labels):
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    for holdings in (experiment.clients.train, experiment.clients.test):
        digest.update(holdings.digest)
    return digest.hexdigest()


def processor() -> str:
    """The name of the processor, as well as it is known."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"

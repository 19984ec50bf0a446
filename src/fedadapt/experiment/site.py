"""A party of a real federation: its site file, its data, and what it does when it is spoken to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedadapt.backbones.rounding import round_backbone
from fedadapt.data.classes import align_classes
from fedadapt.data.dataset import Dataset, Split, join
from fedadapt.data.holdout import hold_out
from fedadapt.engines.flower.site_file import load_site
from fedadapt.errors import (
    BackboneError,
    ConfigError,
    DataError,
    FedadaptError,
    FrameError,
    RunError,
    one_line,
)
from fedadapt.experiment.build import Experiment, build, pixel_moments
from fedadapt.experiment.config import RunConfig, load_config, parse_config
from fedadapt.experiment.party_data import Clients, load_data, share_out
from fedadapt.experiment.site_run import SiteRun
from fedadapt.experiment.trained import Trained
from fedadapt.federation.handshake import TERMS, Fit, Terms, misfit, parse
from fedadapt.federation.measure import answer_measure
from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.serve import predicting, reader, serve
from fedadapt.seeds import Seeds
from fedadapt.training.processor import tuned_processor


def describe_site(path: Path, recipe: Path | None = None, terms: Path | None = None) -> dict[str, str]:
    """What a site would bring into a federation, line by line, after everything that can be checked was.

    Args:
        path: the site file.
        recipe: of the federation, if it is known here.
        terms: what its server says at joining, as it wrote them into its run directory, if they are known here.

    Raises:
        FedadaptError: something does not fit.
    """
    site = FederationSite(path, load_config(recipe) if recipe else None)
    dataset = site.load()
    counts = torch.bincount(dataset.train.labels, minlength=dataset.num_classes).tolist()
    found = {
        "fedadapt": version("fedadapt"),
        "torch": version("torch"),
        "data": f"{dataset.name}: {len(dataset.train)} samples, images {_by(dataset.train.images.shape[1:])}",
        "classes": ", ".join(f"{n} ({c})" for n, c in zip(dataset.class_names, counts, strict=True)),
    }
    if recipe is not None:
        config = load_config(recipe)
        _check_number(site.config.client, config)
        server = config.data.source.create("source")
        _check_shape(dataset, tuple(server.train.images.shape[1:]))
        align_classes(dataset, server.class_names, site.config.classes)
        build_backbone = config.backbone.create("backbone")
        backbone = build_backbone(server.num_classes, Seeds(config.seed).torch("backbone"))
        backbone = round_backbone(backbone, config.federation.backbone_as)
        pixel_moments(backbone, server)
        found["backbone"] = f"{backbone.name} {backbone.digest[:16]}"
    if terms is not None:
        found |= _fitting(site, terms)
    return found


def _fitting(site: FederationSite, file: Path) -> dict[str, str]:
    """What a site and a server compare at joining, after they were.

    Raises:
        ConfigError: the terms cannot be read, or the site does not fit them.
    """
    try:
        terms = parse(Terms, file.read_text(encoding="utf-8"))
    except (OSError, ValueError, FrameError) as error:
        raise ConfigError(
            f"terms {file} cannot be read ({one_line(error)}); take terms.json of the run"
        ) from error
    fit = site.fit(terms, 0 if site.config.client is None else site.config.client)
    if fit.problem:
        raise ConfigError(f"site {site.path} does not fit: {fit.problem}")
    if fit.missing_from is not None:
        return {"backbone": f"not here, the server sends {terms.backbone_bytes:,} bytes of it"}
    return {"backbone": fit.backbone[:16], "layout": fit.layout[:16], "codec": fit.codec[:16]}


class FederationSite:
    """A site at work.

    Args:
        path: its site file.
        recipe: the recipe it insists on; None takes the federation's.
    """

    def __init__(self, path: Path, recipe: RunConfig | None = None) -> None:
        self.path = path.absolute()
        self.config = load_site(self.path)
        self._recipe = recipe
        self._folder = self.path.parent / self.config.folder
        self._built: tuple[str, Experiment, _Own] | None = None
        self._data: Dataset | None = None

    def load(self) -> Dataset:
        """The site's own data, which are read once.

        Raises:
            FedadaptError: they cannot be read.
        """
        if self._data is None:
            with chdir(self.path.parent):
                data: Dataset = self.config.source.create("source")
            if not len(data.train):
                raise DataError(
                    f"source {data.name!r} holds no samples, so a site has nothing to train on; name its data"
                )
            self._data = data
        return self._data

    def greet(self, terms: Terms, client: int) -> Fit:
        """Looks whether this site fits the terms, and remembers them if it does.

        A fetched weight file that is damaged is let go of, so that the next greeting fetches it anew.
        """
        fetched = self._cached(terms.backbone)
        if 0 < terms.backbone_bytes <= _size(_part(fetched)):
            # The site died after the last piece had come, and before the file was in its place.
            _part(fetched).replace(fetched)
        fit = self.fit(terms, client)
        if fetched.exists() and not (fit.backbone in ("", terms.backbone) and _readable(fetched)):
            fetched.unlink(missing_ok=True)
            self._built = None
        if not fit.problem and fit.missing_from is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            SiteRun(self._folder / terms.run).agree(terms)
        return fit

    def fit(self, terms: Terms, client: int) -> Fit:
        """Looks whether this site fits the terms; changes nothing."""
        number = self.config.client if client < 0 else client
        own = {"version": version("fedadapt"), "recipe": terms.recipe_digest}
        if number is None:
            return Fit(client=-1, problem="this site has no number; set client in its site file", **own)
        if self._recipe is not None:
            own["recipe"] = terms.model_copy(update={"recipe": self._recipe.model_dump_json()}).recipe_digest
        try:
            _check_number(number, parse_config(terms.recipe))
            missing = self._missing_from(terms)
            if missing is not None:
                # What does not fit anyhow need not fetch a backbone.
                _, own_data = self._data_for(terms, self._config(terms), number)
                would = Fit(
                    client=number,
                    num_examples=len(own_data.train),
                    backbone=terms.backbone,
                    layout=terms.layout,
                    codec=terms.codec,
                    **own,
                )
                return Fit(client=number, missing_from=missing, problem=misfit(terms, would), **own)
            experiment, own_data = self._build(terms, number)
        except FedadaptError as error:
            return Fit(client=number, problem=str(error)[:500], **own)
        fit = Fit(
            client=number,
            num_examples=len(own_data.train),
            backbone=experiment.backbone.digest,
            layout=experiment.plan.digest.hex(),
            codec=experiment.wire.identity.codec.hex(),
            **own,
        )
        return fit.model_copy(update={"problem": misfit(terms, fit)})

    def take(self, backbone: str, offset: int, total: int, data: bytes) -> int:
        """Puts a piece of a weight file away; it is used once it is whole and makes the network it should."""
        part = _part(self._cached(backbone))
        have = _size(part)
        if offset != have or have + len(data) > total:
            return min(have, total)
        part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with part.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if have + len(data) == total:
            part.replace(self._cached(backbone))
        return have + len(data)

    def answer(self, run: str, request: Request, accepted: int) -> Reply | None:
        """Trains, or measures, as asked; a request that was answered before gets the same bytes again.

        What the site keeps is written down before the answer leaves, under the number of the round. The server
        says which of its rounds counted, and the site starts from what was kept then: an update that was lost
        on its way leaves no trace.
        """
        place = SiteRun(self._folder / run)
        terms = place.terms
        if terms is None:
            return None
        with place.lock():
            said = place.answered(request, accepted)
            if said is not None:
                return Reply(request.round, request.client, said, measure=request.measure)
            if request.measure and accepted and not place.remembers(accepted):
                # It would measure another model than the one it has trained.
                why = f"what this site kept in round {accepted} is lost"
                return Reply(request.round, request.client, failure=why, measure=True)
            experiment, own = self._build(terms, request.client)
            memory = place.recall(accepted)
            party = replace(experiment.party(memory), indices={request.client: own.train})
            with tuned_processor():
                if request.measure:
                    reply = answer_measure(request, party, own.test)
                else:
                    (reply,) = serve([request], party)
            if reply.failure:
                return reply
            if request.measure:
                place.measured(request, accepted, reply.frame)
            else:
                place.keep(request, accepted, memory, reply.frame)
            return reply

    def trained(self) -> Trained:
        """The network as this site has it, of the federation that it answered last.

        The federation's tensors are those that came with the last request; of a site that keeps tensors, or has a model of
        its own, those are in their place.

        Raises:
            RunError: it has answered no round yet, another site did from its folder, or what it kept is lost.
            FedadaptError: the backbone or the data are not here any more.
        """
        nothing = RunError(
            f"site {self.path} has answered no round yet, so it has no model; join a federation first"
        )
        places = [SiteRun(file.parent) for file in self._folder.glob(f"*/{TERMS}")]
        if not places:
            raise nothing
        place = max(places, key=lambda place: place.taken_at)
        with place.lock():
            terms, last = place.terms, place.last()
            if terms is None or last is None:
                raise nothing
            request, kept = last
            if self.config.client not in (None, request.client):
                raise RunError(
                    f"site {self.path} is client {self.config.client}, but client {request.client} answered last from "
                    f"{self._folder}; give each site a folder of its own, or mend client"
                )
            if kept and not place.remembers(kept):
                raise RunError(
                    f"what site {self.path} kept in round {kept} is lost from {place.folder}, and its model with it; "
                    "restore the whole folder"
                )
            experiment, _ = self._build(terms, request.client)
            memory = place.recall(kept)
            streams = reader(experiment.party(memory))(request)
        shared = experiment.global_params(streams)
        own = predicting(experiment.algorithm, shared, memory.get(request.client, {}))
        # A request to train brings the model of the round before, and one to measure that of the last.
        return Trained(experiment, own, max(kept, request.round - 1), request.client)

    def _build(self, terms: Terms, number: int) -> tuple[Experiment, _Own]:
        """The federation's recipe on this site's data, and which of them are for what; made once for all messages."""
        weights = self._weights(terms)
        key = f"{number} {weights} {terms.model_dump_json()}"
        if self._built is None or self._built[0] != key:
            self._built = (key, *self._make(terms, number, weights))
        return self._built[1:]

    def _make(self, terms: Terms, number: int, weights: Path | None) -> tuple[Experiment, _Own]:
        config = self._config(terms)
        if weights is not None:
            backbone = config.backbone.model_copy(update={"weights": str(weights)})
            config = config.model_copy(update={"backbone": backbone})
        dataset, own = self._data_for(terms, config, number)
        with chdir(self.path.parent):
            experiment = build(config, lambda config: (dataset, dataset.test, Clients()))
        return replace(experiment, mean=terms.mean, std=terms.std), own

    def _config(self, terms: Terms) -> RunConfig:
        """The federation's recipe with this site's data and device."""
        config = parse_config(terms.recipe)
        own: dict[str, Any] = {"data": config.data.model_copy(update={"source": self.config.source})}
        if self.config.device is not None:
            own["train"] = config.train.model_copy(update={"device": self.config.device})
        return config.model_copy(update=own)

    def _data_for(self, terms: Terms, config: RunConfig, number: int) -> tuple[Dataset, _Own]:
        """This site's data under the federation's classes, and which of them are for what."""
        if self.config.share:
            with chdir(self.path.parent):
                dataset, _ = load_data(config)
        else:
            dataset = self.load()
        _check_shape(dataset, terms.image)
        dataset = align_classes(dataset, terms.class_names, self.config.classes)
        train = dataset.train
        if self.config.share:
            clients = share_out(config, train)
            learnt, held_out = clients.train[number], clients.test[number]
        else:
            generator, every = Seeds(config.seed).torch("local test", client=number), torch.arange(len(train))
            learnt, held_out = hold_out(every, train.labels, config.data.local_test_fraction, generator)
        test = train.take(held_out)
        if parse_config(terms.recipe).data.measured_at_sites and not self.config.share:
            test = join(dataset.test, test) if len(test) else dataset.test
        return dataset, _Own(learnt, test)

    def _cached(self, backbone: str) -> Path:
        return self._folder / f"backbone-{backbone[:32]}.safetensors"

    def _weights(self, terms: Terms) -> Path | None:
        """The weight file to use instead of the recipe's: the site's own, or one that was fetched."""
        if self.config.weights is not None:
            return Path(self.config.weights)
        return self._cached(terms.backbone) if self._cached(terms.backbone).exists() else None

    def _missing_from(self, terms: Terms) -> int | None:
        """From which byte on the backbone's weight file has to be fetched; None if the network can be made."""
        if self._weights(terms) is not None:
            return None
        config = parse_config(terms.recipe)
        try:
            with chdir(self.path.parent):
                config.backbone.create("backbone")(
                    len(terms.class_names), Seeds(config.seed).torch("backbone")
                )
        except BackboneError:
            return _size(_part(self._cached(terms.backbone)))
        return None


class _Own(NamedTuple):
    """Where in its data the samples are that a site trains on; and those that it measures on, themselves."""

    train: Int64[Tensor, " n"]
    test: Split


def _check_number(number: int | None, config: RunConfig) -> None:
    if number is not None and number >= config.data.num_clients:
        raise ConfigError(
            f"client number {number} is not from 0 to {config.data.num_clients - 1}; set client in its site file"
        )


def _check_shape(dataset: Dataset, wanted: Sequence[int]) -> None:
    shape = dataset.train.images.shape[1:]
    if tuple(shape) != tuple(wanted):
        raise DataError(
            f"images of {dataset.name} are {_by(shape)} here, the federation has {_by(wanted)}; "
            "set size and channels of the source in the site file"
        )


def _part(file: Path) -> Path:
    """Where a weight file is until it is whole."""
    return file.with_suffix(".part")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _readable(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)

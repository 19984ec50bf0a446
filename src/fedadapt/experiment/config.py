"""What a run file says: one TOML file, every key of which may be set on the command line.

A section that names something registered (``backbone``, ``adapter``, ``data.source``, ...) takes that thing's
options beside its ``name``; they are checked when it is made.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from fedadapt.backbones.rounding import Rounding
from fedadapt.errors import ConfigError
from fedadapt.files import from_json, read_toml
from fedadapt.params import Group
from fedadapt.registry import Choice, Section, first_problem
from fedadapt.training.config import TrainConfig


class CodecConfig(Choice):
    """How tensors are packed: a codec or a chain of them such as ``rotate > int4 > zstd``, and where it differs."""

    name: str = "float32"
    groups: dict[Group, str] = Field(default={}, description="other codecs for groups of tensors")
    download: str | None = Field(
        default=None, description="another codec for downloads, but for running statistics"
    )
    delta: bool | None = Field(
        default=None, description="download what changed since the version a client holds; none: if lossy"
    )
    error_feedback: bool = Field(
        default=False, description="clients keep what packing lost and add it to their next upload"
    )


class AugmentConfig(Section):
    """Changes to training images, new in every epoch."""

    pad: int = Field(default=4, ge=0, le=64, description="pixels of zero padding that crops may reach into")
    flip: bool = Field(default=True, description="mirror half of the images")


class DataConfig(Section):
    """The data, and who holds what."""

    source: Choice = Choice(name="digits")
    partition: Choice = Choice(name="iid")
    num_clients: int = Field(default=10, ge=1)
    limit: int | None = Field(default=None, ge=1, description="use only so many training samples, stratified")
    validation_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the training samples to measure on instead of the test set",
    )
    local_test_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="share of its samples that each client measures itself on"
    )
    augment: AugmentConfig = AugmentConfig()

    @property
    def measured_at_sites(self) -> bool:
        """Whether the sites of a real federation measure: they hold samples out, or nobody else has any."""
        return self.local_test_fraction > 0 or self.source.name == "elsewhere"


class AttackConfig(Choice):
    """What dishonest clients do in a simulation, and how many of them there are."""

    name: str = "none"
    share: float = Field(default=0.2, gt=0, lt=1, description="of the clients, chosen once")


class EngineConfig(Choice):
    """Where clients are simulated."""

    name: str = "local"


class PopulationConfig(Section):
    """Who is asked, and how simulated clients behave; between real sites both show by themselves."""

    sampling: Choice = Choice(name="uniform")
    over_selection: float = Field(
        default=1.0,
        ge=1,
        le=10,
        description="clients asked for each update wanted; the first who are done count",
    )
    dropout: float = Field(
        default=0.0, ge=0, le=1, description="probability that a client asked does not answer"
    )
    step_s: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="seconds of a local step on a median device"
    )
    slowness: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="spread of devices: sigma of the log-normal factor on their time",
    )
    deadline_s: float | None = Field(
        default=None, gt=0, description="seconds after which updates come too late; none: all are waited for"
    )
    least_work: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="smallest share of its local steps that a client takes; drawn up to 1",
    )


class FederationConfig(Section):
    """What a server takes from its clients, and when a round between real sites closes; a simulation does not wait."""

    quorum: int = Field(
        default=1, ge=1, description="updates without which a round stays open past its deadline"
    )
    deadline_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds from when a quorum of sites is there; none: until every site asked has answered",
    )
    backbone_as: Rounding = Field(
        default=Rounding.FLOAT32,
        description="what the frozen network is rounded to, everywhere, and sent as to a site that lacks it",
    )
    norm_bound: float | None = Field(
        default=None, gt=0, description="an update of a greater Euclidean norm is refused; none: any is taken"
    )
    max_examples: int | None = Field(
        default=None,
        ge=1,
        description="an update that says it is over more samples, by which it is weighted, is refused; none: any is taken",
    )


class EvaluateConfig(Section):
    """When the global model is measured; the last round always is."""

    every: int = Field(default=1, ge=1, description="rounds")
    limit: int | None = Field(
        default=None, ge=1, description="measure on only so many samples, stratified; none: all"
    )


class RunConfig(Section):
    """A whole run."""

    name: str = Field(min_length=1, pattern=r"^\w[\w.-]*$")
    seed: int = Field(default=0, ge=0)
    rounds: int = Field(default=20, ge=1)
    cohort: int | None = Field(default=None, ge=1, description="clients asked in a round; none: all")
    backbone: Choice = Choice(name="resnet26")
    adapter: Choice = Choice(name="parallel")
    norms: Choice = Choice(name="frozen")
    head: Choice = Choice(name="trained")
    algorithm: Choice = Choice(name="fedavg")
    codec: CodecConfig = CodecConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    attack: AttackConfig = AttackConfig()
    engine: EngineConfig = EngineConfig()
    population: PopulationConfig = PopulationConfig()
    federation: FederationConfig = FederationConfig()


def load_config(path: Path, settings: Sequence[str] = ()) -> RunConfig:
    """Reads a run file and applies settings such as ``train.lr=0.1`` on top of it.

    Args:
        path: a TOML file; its stem is the run's name unless it gives one.
        settings: ``key=value`` with the value in TOML; what is not TOML is taken as text.

    Raises:
        ConfigError: the file cannot be read, or says something that cannot be.
    """
    document = read_toml(path, "run file")
    document.setdefault("name", path.stem)
    for setting in settings:
        apply_setting(document, setting, RunConfig)
    return make_config(document)


def parse_config(text: str) -> RunConfig:
    """The configuration that another party wrote as JSON.

    Raises:
        ConfigError: it is none.
    """
    try:
        document = from_json(text)
    except ValueError as error:
        raise ConfigError(f"a recipe that arrived is no JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"a recipe that arrived is no table, but {type(document).__name__}")
    return make_config(document)


def make_config(document: Mapping[str, Any]) -> RunConfig:
    """Checks a whole document of settings.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(first_problem(error, _siblings(error.errors()[0]["loc"]))) from None


def first_difference(before: RunConfig, now: RunConfig) -> str:
    """The first key in which two configurations differ, with both values; empty if none does."""

    def leaves(path: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            return {path: value}
        return {p: v for key, inner in value.items() for p, v in leaves(f"{path}.{key}", inner).items()}

    was, is_now = (leaves("", config.model_dump(mode="json")) for config in (before, now))
    keys = (key for key in was | is_now if was.get(key) != is_now.get(key))
    return next((f"{key[1:]} is {is_now.get(key)!r}, and was {was.get(key)!r}" for key in keys), "")


def apply_setting(document: dict[str, Any], setting: str, model: type[BaseModel]) -> None:
    """Sets one key of a document for `model` in place, from ``key=value``."""
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes key=value, got {setting!r}; for instance --set train.lr=0.1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    try:
        _set(document, key.split("."), value, model)
    except ConfigError as error:
        raise ConfigError(f"--set {setting}: {error}") from None


def overlay(document: dict[str, Any], changes: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Sets keys of a document for `model` in place, from a table such as ``{ train.lr = 0.1, adapter = "full" }``.

    A table that names something registered replaces what was there; one without a name changes its options, or none. The
    document gets copies: what is set in it later leaves `changes` as they are.

    Raises:
        ConfigError: a section is set to a value, or the other way round.
    """

    def leaves(path: list[str], value: Any) -> None:
        chosen = _choice(path, model) is not None and isinstance(value, Mapping) and "name" in value
        if isinstance(value, Mapping) and not chosen and (value or not path or _table(path, model)):
            for key, inner in value.items():
                leaves([*path, *key.split(".")], inner)
        else:
            _set(document, path, value, model)

    leaves([], deepcopy(changes))


def _set(document: dict[str, Any], path: Sequence[str], value: Any, model: type[BaseModel]) -> None:
    *sections, last = path
    place = document
    for depth, section in enumerate(sections, start=1):
        field = _choice(path[:depth], model)
        # An option of a choice that the file leaves at its default belongs to that default.
        named = (
            {"name": field.default.name} if field is not None and isinstance(field.default, Choice) else {}
        )
        given = place.setdefault(section, named)
        if field is not None and isinstance(given, str):
            # `adapter = "low_rank"`, and an option of it.
            given = place[section] = {"name": given}
        place = given
        if not isinstance(place, dict):
            raise ConfigError(f"{section!r} is a value, not a section")
    # `--set adapter=full` replaces all of it: options of the old choice would not fit the new one.
    place[last] = value


def _choice(path: Sequence[str], model: Any) -> FieldInfo | None:
    """The field of `model` at `path` if it is a choice."""
    field = _table(path, model)
    return (
        field
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Choice)
        else None
    )


def _table(path: Sequence[str], model: Any) -> FieldInfo | None:
    """The field of `model` at `path` if it is a choice or a section."""
    field = None
    for key in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or key not in model.model_fields:
            return None
        field = model.model_fields[key]
        model = field.annotation
    return field if isinstance(model, type) and issubclass(model, BaseModel) else None


def _siblings(location: Sequence[int | str]) -> dict[str, str]:
    """The keys that are allowed where `location` points."""
    model: Any = RunConfig
    for key in location[:-1]:
        field = model.model_fields.get(key) if hasattr(model, "model_fields") else None
        if field is None:
            break
        model = field.annotation
    return dict.fromkeys(getattr(model, "model_fields", {}), "")

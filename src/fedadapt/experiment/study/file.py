"""What a study file says: a recipe, axes of named settings, seeds, and how the learning rate is picked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedadapt.errors import ConfigError
from fedadapt.experiment.config import RunConfig, apply_setting, make_config, overlay
from fedadapt.files import read_toml
from fedadapt.registry import Section, first_problem

Settings = dict[str, Any]
Pattern = Mapping[str, str | int | list[str | int]]
Filled = Field(min_length=1)

SEED = "seed"
"""The name under which a cell's seed stands among its values."""


class SearchConfig(Section):
    """One key picked by short runs that are measured on validation data, the same for every row."""

    key: str = "train.lr"
    values: Annotated[list[float], Filled]
    per: list[str] = Field(default=[], description="axes for each combination of which the key is picked")
    at: dict[str, str] = Field(
        default={},
        description="values of other axes that the short runs have, where the grid has such a place",
    )
    settings: Settings = Field(default={}, description="of the short runs")
    seed: int = Field(default=0, ge=0)


class ReportConfig(Section):
    """What the results are to show."""

    compare: str | None = Field(
        default=None, description="the axis whose values are compared; none: the first"
    )
    reference: str | None = Field(default=None, description="the value that others are measured against")
    claim: list[str] = Field(
        default=[], description="values that the claim is about; none: all but the reference"
    )
    points: float = Field(default=1.0, ge=0, description="of accuracy that the claim allows to lose")
    share: float = Field(default=0.12, gt=0, description="of the reference's bytes that the claim allows")
    along: list[str] = Field(default=[], description="axes along which the gap is drawn, in the file's order")


class StudyConfig(Section):
    """A whole study file."""

    name: str = Field(min_length=1, pattern=r"^\w[\w.-]*$")
    title: str = ""
    recipe: Path
    settings: Settings = Field(default={}, description="on top of the recipe, for every cell")
    seeds: list[int] = Field(default=[0], min_length=1)
    design: Literal["product", "one at a time"] = "product"
    axes: Annotated[dict[str, Annotated[dict[str, Settings], Filled]], Filled]
    zip: list[list[str]] = Field(
        default=[], description="axes that go together, first value with first value"
    )
    include: list[Pattern] = Field(default=[], description="cells to keep; none: all")
    exclude: list[Pattern] = Field(default=[], description="cells to leave out")
    search: SearchConfig | None = None
    report: ReportConfig = ReportConfig()
    images_per_second: float = Field(
        default=250.0, gt=0, description="of one core, for the estimate before anything is measured"
    )


@dataclass(frozen=True)
class Study:
    """A study file and the recipe under it.

    Args:
        path: the file.
        config: what it says.
        recipe: the recipe's document with the study's settings on top.
        given: settings on top of those, as they were given, each ``key=value``.
    """

    path: Path
    config: StudyConfig
    recipe: Settings
    given: tuple[str, ...] = ()

    def configure(self, labels: Mapping[str, str], *more: Settings) -> RunConfig:
        """The run with the settings of `labels`, a value by axis, and `more` on top; its name means nothing yet.

        Raises:
            ConfigError: together they are not a run.
        """
        document = deepcopy(self.recipe)
        for axis, values in self.config.axes.items():
            if axis in labels:
                overlay(document, values[labels[axis]], RunConfig)
        for settings in more:
            overlay(document, settings, RunConfig)
        return make_config(document)


def load_study(path: Path, settings: Sequence[str] = ()) -> Study:
    """Reads a study file and its recipe, which is looked for beside it.

    Args:
        path: a TOML file; its stem is the study's name unless it gives one.
        settings: more for every cell, as ``key=value``, on top of the study's own.

    Raises:
        ConfigError: a file cannot be read, or says something that cannot be.
    """
    document = read_toml(path, "study file")
    document.setdefault("name", path.stem)
    try:
        config = StudyConfig.model_validate(document)
    except ValidationError as error:
        allowed = dict.fromkeys(_keys(error.errors()[0]["loc"]), "")
        raise ConfigError(f"study {path}: {first_problem(error, allowed)}") from None
    try:
        _check(config)
    except ConfigError as error:
        raise ConfigError(f"study {path}: {error}") from None
    recipe_path = path.parent / config.recipe
    recipe = read_toml(recipe_path, f"the recipe of study {path}:")
    recipe["name"] = config.name
    try:
        overlay(recipe, config.settings, RunConfig)
    except ConfigError as error:
        raise ConfigError(f"study {path}, settings: {error}") from None
    for setting in settings:
        apply_setting(recipe, setting, RunConfig)
    return Study(path, config, recipe, tuple(settings))


def _keys(location: tuple[int | str, ...]) -> Iterable[str]:
    """The keys that are allowed where `location` points."""
    sections: dict[int | str, type[Section]] = {"search": SearchConfig, "report": ReportConfig}
    return (sections.get(location[0], StudyConfig) if len(location) > 1 else StudyConfig).model_fields


def _check(config: StudyConfig) -> None:
    """Refuses axes and values that are named but are not there."""
    if SEED in config.axes:
        raise ConfigError(f"an axis is called {SEED!r}; give the seeds as: seeds = [0, 1, 2]")
    search, report = config.search, config.report
    for where, names in (
        *(("zip", group) for group in config.zip),
        ("search.per", search.per if search else []),
        ("report.along", report.along),
        ("report.compare", [report.compare] if report.compare else []),
    ):
        for name in names:
            _known(where, name, config.axes)
    for group in config.zip:
        lengths = {name: len(config.axes[name]) for name in group}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ConfigError(f"zipped axes need as many values each, got {told}; add or drop some")
    at = [search.at] if search else []
    for where, patterns in (("include", config.include), ("exclude", config.exclude), ("search.at", at)):
        for pattern in patterns:
            check_pattern(where, pattern, config)
    _check_report(config)


def _check_report(config: StudyConfig) -> None:
    """Refuses values that are not of the axis that is compared, and to draw along that one."""
    report = config.report
    compare = report.compare or next(iter(config.axes))
    for axis in report.along:
        if axis == compare or any({axis, compare} <= {*group} for group in config.zip):
            raise ConfigError(
                f"report.along names {axis!r}, whose values are compared; leave it out, or set report.compare to another axis"
            )
    compared = config.axes[compare]
    if report.reference is not None:
        _known("report.reference", report.reference, compared)
    for value in report.claim:
        _known("report.claim", value, compared)


def check_pattern(where: str, pattern: Pattern, config: StudyConfig) -> None:
    """Refuses a pattern of cells that can match none.

    Raises:
        ConfigError: it names an axis or a value that the study does not have.
    """
    known: dict[str, Iterable[str]] = {**config.axes, SEED: dict.fromkeys(map(str, config.seeds))}
    for axis, wanted in pattern.items():
        _known(where, axis, known)
        for value in wanted if isinstance(wanted, list) else [wanted]:
            _known(f"{where}, axis {axis!r}", str(value), known[axis])


def matches(pattern: Pattern, labels: Mapping[str, str]) -> bool:
    """Whether a cell has the values of a pattern; of a list, one of them."""
    return all(
        labels.get(axis, "") in map(str, wanted if isinstance(wanted, list) else [wanted])
        for axis, wanted in pattern.items()
    )


def _known(where: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(f"{where} names {name!r}, which is not there{hint} known: {', '.join(names)}")

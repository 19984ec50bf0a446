"""From a study to its cells: the places of the grid, the rate of each, and the digest that a cell is known by."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fedadapt.errors import ConfigError
from fedadapt.experiment.build import build_coding
from fedadapt.experiment.config import RunConfig
from fedadapt.experiment.study.file import SEED, SearchConfig, Study, StudyConfig, matches
from fedadapt.registry import find
from fedadapt.runs.results import CellResult, Status

DIGEST_CHARACTERS = 12


class Stage(StrEnum):
    """What a cell is for."""

    SEARCH = "search"
    GRID = "grid"


@dataclass(frozen=True)
class Cell:
    """A run of a study.

    Args:
        config: the whole of it; its name is its digest.
        labels: the value of every axis, and the seed; of a search the axes it is for, and the value tried.
        stage: what it is for.
        number: its place in the grid, from 1; 0 in a search.
    """

    config: RunConfig
    labels: Mapping[str, str]
    stage: Stage
    number: int = 0

    @property
    def digest(self) -> str:
        """What the cell is known by."""
        return self.config.name

    @property
    def title(self) -> str:
        """The cell in words."""
        return titled(self.labels)

    def is_for(self, cell: Cell) -> bool:
        """Whether this is a run of the search that decides for a cell of the grid."""
        return self.stage is Stage.SEARCH and all(
            cell.labels.get(axis, value) == value for axis, value in self.labels.items()
        )


@dataclass(frozen=True)
class Place:
    """A place in the grid; which cell it is depends on the search.

    Args:
        number: from 1, seeds outermost, so that more seeds leave the numbers as they are.
        labels: the value of every axis, and the seed.
    """

    number: int
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """What of a study is known so far.

    Args:
        cells: of the grid, by number, where the search has found a value.
        searches: all cells of searches.
        waiting: what waits for its search, with the first value that is tried.
        lost: the numbers of those of them that wait in vain: no run of their search worked.
    """

    cells: Mapping[int, Cell]
    searches: tuple[Cell, ...]
    waiting: tuple[Cell, ...]
    lost: frozenset[int] = frozenset()

    def needed(self, results: Mapping[str, CellResult], known: Container[str] = ()) -> list[Cell]:
        """The cells without a result, searches first, each once; not searches that are `known` from elsewhere."""
        searches = (cell for cell in self.searches if cell.digest not in known)
        both = {cell.digest: cell for cell in (*self.cells.values(), *searches)}
        missing = [cell for digest, cell in both.items() if digest not in results]
        return sorted(missing, key=lambda cell: (cell.stage is Stage.GRID, cell.number))


def titled(labels: Mapping[str, str]) -> str:
    """A cell or place in words.

    Example:
        >>> titled({"trainable": "full", "seed": "0"})
        'trainable=full seed=0'
    """
    return " ".join(f"{axis}={value}" for axis, value in labels.items())


def digest(config: RunConfig) -> str:
    """The name of a run by what it is: BLAKE2 over its canonical JSON, less its name and what is at its default.

    Defaults are left out so that a key which later versions add leaves the digests of older cells as they are.

    Example:
        >>> from fedadapt.experiment.config import make_config
        >>> digest(make_config({"name": "a", "seed": 0})) == digest(make_config({"name": "b"}))
        True
    """
    document = config.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode()).hexdigest()[:DIGEST_CHARACTERS]


def places(study: Study) -> list[Place]:
    """The grid, in the order of the file.

    Raises:
        ConfigError: nothing is left of it.
    """
    config = study.config
    found: list[Place] = []
    for seed in config.seeds:
        for values in _assignments(study):
            labels = {**values, SEED: str(seed)}
            if _kept(config, labels):
                found.append(Place(len(found) + 1, labels))
    if not found:
        raise ConfigError(f"study {study.path} has no cell; include and exclude leave none")
    return found


def make_plan(study: Study, wanted: list[Place], results: Mapping[str, CellResult]) -> Plan:
    """What `wanted` needs, by what is known.

    Raises:
        ConfigError: a cell is not a run that could be.
    """
    search = study.config.search
    cells: dict[int, Cell] = {}
    groups: dict[tuple[str, ...], list[Cell]] = {}
    grid: list[Place] = places(study)
    waiting: list[Cell] = []
    lost: set[int] = set()
    for place in wanted:
        seed = {SEED: int(place.labels[SEED])}
        if search is None:
            config = study.configure(place.labels, seed)
        else:
            group = tuple(place.labels[axis] for axis in search.per)
            if group not in groups:
                groups[group] = _candidates(study, search, grid, place)
            found = [results.get(cell.digest) for cell in groups[group]]
            best = _best(found)
            if best is None:
                if all(one is not None and one.status is Status.FAILED for one in found):
                    lost.add(place.number)
                config = study.configure(place.labels, seed, {search.key: search.values[0]})
                waiting.append(Cell(_named(config), place.labels, Stage.GRID, place.number))
                continue
            config = study.configure(place.labels, seed, {search.key: search.values[best]})
        cells[place.number] = Cell(_named(config), place.labels, Stage.GRID, place.number)
    return Plan(
        cells, tuple(cell for tried in groups.values() for cell in tried), tuple(waiting), frozenset(lost)
    )


def check(study: Study, wanted: list[Place]) -> None:
    """Refuses a study of which a cell names what is not there, or that searches on test data, before any of it runs.

    Raises:
        ConfigError: in one line.
    """
    seen = set()
    grid, searches = list(_all(study, wanted)), make_plan(study, wanted, {}).searches
    for cell in (*grid, *searches):
        config, data = cell.config, cell.config.data
        parts: dict[str, Any] = {
            "backbone": config.backbone,
            "adapter": config.adapter,
            "norm policy": config.norms,
            "head policy": config.head,
            "algorithm": config.algorithm,
            "partition": data.partition,
            "codec": config.codec,
        }
        for kind, choice in parts.items():
            key = (kind, choice.model_dump_json())
            if key in seen:
                continue
            seen.add(key)
            try:
                build_coding(config) if kind == "codec" else choice.create(kind)
            except ConfigError as error:
                raise ConfigError(f"study {study.path}, cell {cell.title}: {error}") from None
        find("source", data.source.name)
        if config.train.device.startswith("cuda:"):
            raise ConfigError(
                f"study {study.path}, cell {cell.title}: train.device is {config.train.device!r}; cells are given to GPUs by the "
                "study itself, use 'cuda'"
            )
    for cell in searches:
        if not cell.config.data.validation_fraction:
            raise ConfigError(
                f"study {study.path}: the search measures on the test set, and what it picks would be picked by that; "
                "set data.validation_fraction in the settings of [search], for instance to 0.1"
            )


def _all(study: Study, wanted: list[Place]) -> Iterator[Cell]:
    """Every cell that could come, with the first value of its search."""
    search = study.config.search
    for place in wanted:
        first = () if search is None else ({search.key: search.values[0]},)
        try:
            config = study.configure(place.labels, {SEED: int(place.labels[SEED])}, *first)
        except ConfigError as error:
            raise ConfigError(f"study {study.path}, cell {titled(place.labels)}: {error}") from None
        yield Cell(config, place.labels, Stage.GRID, place.number)


def _assignments(study: Study) -> Iterator[dict[str, str]]:
    axes = study.config.axes
    groups = [list(group) for group in study.config.zip]
    groups += [[axis] for axis in axes if not any(axis in group for group in groups)]
    # The order of the file counts, whichever axes are zipped.
    groups.sort(key=lambda group: min(list(axes).index(axis) for axis in group))
    steps = [list(zip(*(axes[axis] for axis in group), strict=True)) for group in groups]
    if study.config.design == "product":
        chosen: Iterator[tuple[tuple[str, ...], ...]] = itertools.product(*steps)
    else:
        first = tuple(step[0] for step in steps)
        others = (
            (*first[:index], value, *first[index + 1 :])
            for index, step in enumerate(steps)
            for value in step[1:]
        )
        chosen = itertools.chain([first], others)
    for values in chosen:
        named = {
            axis: value
            for group, row in zip(groups, values, strict=True)
            for axis, value in zip(group, row, strict=True)
        }
        yield {axis: named[axis] for axis in axes}


def _candidates(study: Study, search: SearchConfig, grid: list[Place], place: Place) -> list[Cell]:
    """The short runs that decide for a place: like the first of the grid with its values of ``per``, if it can with ``at``."""
    wanted = {axis: place.labels[axis] for axis in search.per}
    able = [one.labels for one in grid if matches(dict(wanted), one.labels)]
    like = next((labels for labels in able if matches(dict(search.at), labels)), able[0])
    cells = []
    for value in search.values:
        config = study.configure(like, search.settings, {SEED: search.seed, search.key: value})
        cells.append(Cell(_named(config), {**wanted, search.key: f"{value:g}"}, Stage.SEARCH))
    return cells


def _kept(config: StudyConfig, labels: Mapping[str, str]) -> bool:
    included = not config.include or any(matches(pattern, labels) for pattern in config.include)
    return included and not any(matches(pattern, labels) for pattern in config.exclude)


def _best(results: list[CellResult | None]) -> int | None:
    """The most accurate; None as long as one is missing, or where none worked."""
    if any(result is None or result.status is Status.BROKEN for result in results):
        return None
    scores = [r.accuracy if r and r.status is Status.DONE else None for r in results]
    known = [score for score in scores if score is not None]
    return scores.index(max(known)) if known else None


def _named(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"name": digest(config)})

"""The one table from names to factories: backbones, adapters, data sources, partitions, algorithms, codecs, ...

A factory is a function (or frozen dataclass) whose keyword parameters are the options a user may set. It
registers itself where it is defined; every module of its kind's room is imported when the kind is first asked
for, so a new file in a room is all that a new name takes.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator, validate_call

from fedadapt.errors import ConfigError, UnknownName

ROOMS = {
    "backbone": "fedadapt.backbones",
    "adapter": "fedadapt.adapters",
    "norm policy": "fedadapt.norms",
    "head policy": "fedadapt.adapters.heads",
    "source": "fedadapt.data.sources",
    "partition": "fedadapt.data.partitions",
    "algorithm": "fedadapt.algorithms",
    "codec": "fedadapt.codecs",
    "sampling": "fedadapt.federation.sampling",
    "attack": "fedadapt.federation.attacks",
    "engine": "fedadapt.engines",
}
"""Where the factories of each kind live: a module, or a package of modules."""

Factory = TypeVar("Factory", bound=Callable[..., Any])

_factories: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in ROOMS}
_visited: set[str] = set()


def register(kind: str, name: str) -> Callable[[Factory], Factory]:
    """Enters the decorated factory under `name`.

    Args:
        kind: a key of `ROOMS`.
        name: what users write; unique within the kind.

    Raises:
        ValueError: the name is taken by another factory.
    """

    def enter(factory: Factory) -> Factory:
        if name in _factories[kind]:
            raise ValueError(f"{kind} {name!r} is registered twice")
        _factories[kind][name] = factory
        return factory

    return enter


def names(kind: str) -> list[str]:
    """All names of a kind, sorted."""
    return sorted(_table(kind))


def describe(kind: str, name: str) -> tuple[str, dict[str, str]]:
    """The first line of a factory's docstring, and its options with their defaults as text."""
    factory = find(kind, name)
    summary = (inspect.getdoc(factory) or "").split("\n", 1)[0]
    options: dict[str, str] = {}
    for parameter in inspect.signature(factory).parameters.values():
        default = parameter.default
        if dataclasses.is_dataclass(default):
            # Options that several factories share are one value; users set its fields.
            for field in dataclasses.fields(default):
                options[f"{parameter.name}.{field.name}"] = repr(getattr(default, field.name))
        elif parameter.kind is not parameter.VAR_KEYWORD:
            options[parameter.name] = "required" if default is parameter.empty else repr(default)
    return summary, options


def find(kind: str, name: str) -> Callable[..., Any]:
    """The factory registered under `name`.

    Raises:
        UnknownName: there is none; the message lists the known names and the closest one.
    """
    table = _table(kind)
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise UnknownName(f"unknown {kind} {name!r}{hint} known: {', '.join(sorted(table))}")
    return table[name]


def create(kind: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Calls the factory of `name` with `options`, each checked against the factory's annotations.

    Raises:
        UnknownName: nothing is registered under `name`.
        ConfigError: an option is unknown, missing, or has the wrong type or range.
    """
    factory = find(kind, name)
    try:
        return validate_call(config=ConfigDict(allow_inf_nan=False))(factory)(**(options or {}))
    except ValidationError as error:
        raise ConfigError(f"{kind} {name!r}: {first_problem(error, describe(kind, name)[1])}") from None


class Section(BaseModel):
    """Settings of a file that are all known: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choice(BaseModel):
    """The name of something registered, with its options."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """The name alone will do: ``norms = "local"`` is ``norms = { name = "local" }``."""
        return {"name": value} if isinstance(value, str) else value

    def create(self, kind: str) -> Any:
        """Makes what is named.

        Raises:
            ConfigError: the name or an option is wrong.
        """
        return create(kind, self.name, self.__pydantic_extra__)


def first_problem(error: ValidationError, allowed: Mapping[str, str]) -> str:
    """The first finding of a pydantic error in one line, with the value and what is allowed."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        close = difflib.get_close_matches(key, allowed, n=1) or difflib.get_close_matches(
            key.split(".")[-1], allowed, n=1
        )
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown key {key!r}{hint} (allowed: {', '.join(allowed) or 'none'})"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"key {key!r} is required"
    return f"key {key!r} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _table(kind: str) -> dict[str, Callable[..., Any]]:
    if kind not in _visited:
        _visited.add(kind)
        room = importlib.import_module(ROOMS[kind])
        for module in pkgutil.iter_modules(getattr(room, "__path__", ()), f"{room.__name__}."):
            importlib.import_module(module.name)
    return _factories[kind]

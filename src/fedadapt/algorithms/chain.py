"""Several techniques as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Annotated, Any

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, LocalRule, ServerRule
from fedadapt.errors import ConfigError
from fedadapt.registry import create, register
from fedadapt.training.local import Gradient

_PLAIN_LOCAL, _PLAIN_SERVER = LocalRule(), ServerRule()

_LOCAL_SLOTS = {
    "contrast": "the penalty on features",
    "personal": "the clients' personal model",
    "phases": "the phases of local training",
    "finish": "what clients send and keep",
}
_SERVER_SLOTS = {
    "weigh": "the weights of clients",
    "aggregate": "the aggregation",
    "optimise": "the server's step",
    "fold": "what else the server keeps",
    "buffer": "the buffer",
}


def chain(*algorithms: Algorithm) -> Algorithm:
    """The technique that is all of `algorithms` at once.

    Each fills some slots of a technique; those nobody fills are federated averaging. Gradients are wrapped in order,
    each around those before it, and updates are prepared in order.

    Raises:
        ConfigError: two of them would fill the same slot, or one's arithmetic does not hold beside another's.

    Example:
        >>> from fedadapt.registry import create
        >>> make = lambda name, **options: create("algorithm", name, options)
        >>> chain(make("fedprox", mu=0.1), make("krum"), make("fedadam")).name
        'FedProx + Krum + FedAdam'
        >>> chain(make("fedavgm"), make("fedadam"))
        Traceback (most recent call last):
            ...
        fedadapt.errors.ConfigError: FedAvgM and FedAdam both set the server's step; leave one of them out
    """
    return reduce(_join, algorithms)


@register("algorithm", "chain")
def chain_of(of: Annotated[list[str | dict[str, Any]], Field(min_length=1)]) -> Algorithm:
    """Several techniques at once, for instance FedProx on the clients and FedAdam on the server.

    Args:
        of: the techniques in order, each a name, or a table of a name and options.

    Example:
        >>> chain_of(of=[{"name": "fedprox", "mu": 0.1}, "median"]).name
        'FedProx + Median'
    """
    parts = []
    for part in of:
        options = {"name": part} if isinstance(part, str) else dict(part)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(
                f"algorithm.of has {part!r} without a name; write a name or {{ name = ..., option = ... }}"
            )
        parts.append(create("algorithm", name, options))
    return chain(*parts)


def _join(one: Algorithm, other: Algorithm) -> Algorithm:
    for first, second in ((one, other), (other, one)):
        _check_pair(first, second)
    return Algorithm(
        f"{one.name} + {other.name}",
        local=_join_local(one, other),
        server=_join_server(one, other),
        checks=(*one.checks, *other.checks),
    )


def _check_pair(one: Algorithm, other: Algorithm) -> None:
    """Refuses what `other` does to the arithmetic of `one`."""
    bends = other.local.gradient is not None or other.local.phases != _PLAIN_LOCAL.phases
    if one.local.reads_path and bends:
        raise ConfigError(
            f"{one.name} takes local training for a sum of plain gradients, which {other.name} changes; "
            "leave one of them out"
        )
    if one.server.reads_updates and other.server.aggregate is not _PLAIN_SERVER.aggregate:
        raise ConfigError(
            f"{one.name} uses every single update besides their aggregate, past the aggregation of {other.name}; "
            "leave one of them out"
        )
    if one.server.buffer is not None and other.local.downloads:
        raise ConfigError(
            f"{one.name} lets clients work on models of different rounds, {other.name} needs them on the same; "
            "leave one of them out"
        )
    changes = other.server.prepare or other.server.buffer is not None
    if one.local.books and (changes or other.server.aggregate is not _PLAIN_SERVER.aggregate):
        raise ConfigError(
            f"{one.name} has clients remember what they sent, of which {other.name} takes something else or less; "
            "leave one of them out"
        )
    if one.local.personal is not None and other.local.phases != _PLAIN_LOCAL.phases:
        raise ConfigError(
            f"{one.name} trains a second model all the while, {other.name} trains in phases; leave one of them out"
        )


def _choose(one: Algorithm, other: Algorithm, side: str, slot: str, says: str) -> Any:
    """What of the two fills a slot that only one may fill."""
    plain = getattr(_PLAIN_LOCAL if side == "local" else _PLAIN_SERVER, slot)
    first, second = getattr(getattr(one, side), slot), getattr(getattr(other, side), slot)
    if first in (plain, second):
        return second
    if second == plain:
        return first
    raise ConfigError(f"{one.name} and {other.name} both set {says}; leave one of them out")


def _join_local(one: Algorithm, other: Algorithm) -> LocalRule:
    first, second = one.local, other.local
    chosen = {slot: _choose(one, other, "local", slot, says) for slot, says in _LOCAL_SLOTS.items()}
    return LocalRule(
        gradient=_both(first.gradient, second.gradient, _wrap),
        adjust=_both(first.adjust, second.adjust, _after),
        kept=first.kept | second.kept,
        scalars={**first.scalars, **second.scalars},
        downloads=(*first.downloads, *second.downloads),
        uploads=(*first.uploads, *second.uploads),
        memory={**first.memory, **second.memory},
        measures_start=first.measures_start or second.measures_start,
        reads_path=first.reads_path or second.reads_path,
        books=first.books or second.books,
        **chosen,
    )


def _join_server(one: Algorithm, other: Algorithm) -> ServerRule:
    first, second = one.server, other.server
    chosen = {slot: _choose(one, other, "server", slot, says) for slot, says in _SERVER_SLOTS.items()}
    return ServerRule(
        prepare=(*first.prepare, *second.prepare),
        streams=_both(first.streams, second.streams, lambda a, b: lambda model: a(model) | b(model)),
        least=max(first.least, second.least),
        reads_updates=first.reads_updates or second.reads_updates,
        **chosen,
    )


def _both(one: Any, other: Any, combine: Callable[[Any, Any], Any]) -> Any:
    if one is None or other is None:
        return one or other
    return combine(one, other)


def _wrap(inner: Any, outer: Any) -> Any:
    def gradient(plain: Gradient, work: Any) -> Gradient:
        wrapped: Gradient = outer(inner(plain, work), work)
        return wrapped

    return gradient


def _after(first: Any, second: Any) -> Any:
    return lambda logits, counts: second(first(logits, counts), counts)

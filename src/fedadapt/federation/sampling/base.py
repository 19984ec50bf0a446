"""What a way of sampling is, and what it may know of the clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedadapt.data.holdings import NOBODY, Holdings
from fedadapt.seeds import Seeds

MAX_LOOKS = 100
"""Clients that are looked at for each one that is to be asked, before a round makes do with those found."""


@dataclass(frozen=True)
class Pool:
    """The registered clients.

    Args:
        num_clients: numbered from 0.
        held: what each of them holds, in a simulation.
    """

    num_clients: int
    held: Holdings = NOBODY


Choose = Callable[[Pool, int, int, Seeds], list[int]]
"""``(pool, count, round, seeds) -> clients``: at most `count` different ones, sorted; all if there are no more."""


@dataclass(frozen=True)
class Sampling:
    """A way to choose whom to ask. It takes time and memory by how many are asked, not by how many there are.

    Args:
        choose: whom to ask in a round; the same round of the same seeds asks the same clients.
        even: whether every client is as likely as every other, whatever the round.
    """

    choose: Choose
    even: bool = False


def choose_available(
    available: Callable[[int], bool], num_clients: int, count: int, round: int, seeds: Seeds
) -> list[int]:
    """The first `count` available clients in a random order, sorted.

    Gives up after `MAX_LOOKS` clients for each that is wanted: a server does not ask a million whether they are there.

    Args:
        available: whether a client is.
        num_clients: registered.
        count: how many to ask.
        round: counted from 1.
        seeds: of the run.
    """
    chosen: list[int] = []
    for looks, client in enumerate(_shuffled(num_clients, round, seeds)):
        if len(chosen) == count or looks == MAX_LOOKS * count:
            break
        if available(client):
            chosen.append(client)
    return sorted(chosen)


def _shuffled(num_clients: int, round: int, seeds: Seeds) -> Iterator[int]:
    """All clients in a random order, of which only the places looked at are ever made (Fisher and Yates)."""
    generator = seeds.numpy("cohort", round=round)
    moved: dict[int, int] = {}
    for place in range(num_clients):
        other = int(generator.integers(place, num_clients))
        yield moved.get(other, other)
        moved[other] = moved.get(place, place)

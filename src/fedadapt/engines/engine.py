"""What an engine is, and what one is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.serve import Party


class Engine(Protocol):
    """Carries messages: one method, a place to be told of progress, and what it cost elsewhere.

    Args:
        on_clients: told how many clients of a round have answered, as they do.
    """

    on_clients: Callable[[int], None]

    @property
    def cpu_s(self) -> float:
        """Processor seconds that other processes have spent for it so far; 0 where that is not known."""
        ...

    def exchange(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """Brings each request to its client and returns the replies that came, in any order."""
        ...


MakeParty: TypeAlias = Callable[[str, Mapping[str, NDArray[Any]], str], Party]
"""Makes a party of a document, columns of data and the name of a device."""


@dataclass(frozen=True)
class Blueprint:
    """How the party of a simulation is made again in another process, from text and numbers alone.

    Args:
        make: makes it; a function that other processes find by its name. The party remembers nothing: what clients
            keep comes with their requests.
        document: what is to be made.
        columns: the data, which all processes of a machine can share.
    """

    make: MakeParty
    document: str
    columns: Mapping[str, NDArray[Any]]


MakeEngine: TypeAlias = Callable[[Party, Blueprint], Engine]
"""Makes the engine that simulates the clients of a party.

A factory of the kind ``engine`` gives a context manager of one of these: entering it finds the machines before
anything of a run is touched, and leaving it lets go of them.
"""

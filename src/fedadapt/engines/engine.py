"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fedadapt.federation.messages import Reply, Request


class Engine(Protocol):
    """Carries messages: one method, and a place to be told of progress.

    Args:
        on_clients: told how many clients of a round have answered, as they do.
    """

    on_clients: Callable[[int], None]

    def exchange(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """Brings each request to its client and returns the replies that came, in any order."""
        ...

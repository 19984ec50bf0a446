"""What an engine is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fedadapt.federation.messages import Reply, Request


class Engine(Protocol):
    """Carries messages: one method."""

    def exchange(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """Brings each request to its client and returns the replies that came, in any order."""
        ...

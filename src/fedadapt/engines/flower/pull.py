"""Fetching what has arrived, so that one message of which half is missing holds up nobody else's."""

from __future__ import annotations

import threading

from flwr.app import Message
from flwr.serverapp import Grid

PATIENCE_S = 2.0
"""For one message to be fetched, before the others are fetched beside it."""


class Pull:
    """The answer to one message, being fetched.

    Flower announces an answer before its content is there, and then waits for that: for minutes if the site died in the
    middle of its upload, for more than an hour if it never means to end it. That waits in a thread of its own.

    Args:
        grid: Flower's way to the nodes.
        key: of the message that was sent.
    """

    def __init__(self, grid: Grid, key: str) -> None:
        self._grid = grid
        self._key = key
        self._found: list[Message] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._thread.join(PATIENCE_S)

    @property
    def is_over(self) -> bool:
        """Whether it is known if there is an answer."""
        return not self._thread.is_alive()

    def result(self) -> list[Message]:
        """The answer, if there is one.

        Raises:
            Exception: whatever Flower stumbled over.
        """
        if self._error is not None:
            raise self._error
        return self._found

    def _run(self) -> None:
        try:
            self._found = list(self._grid.pull_messages([self._key]))
        except Exception as error:  # noqa: BLE001 - raised again where it is asked for
            self._error = error

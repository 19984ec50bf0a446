"""Fetching what has arrived, so that one message of which half is missing holds up nobody else's."""

from __future__ import annotations

import threading

from flwr.app import Message
from flwr.serverapp import Grid

PATIENCE_S = 2.0
"""For all that is new to be fetched; a message that takes longer is fetched beside the others."""


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
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ends(self, within_s: float) -> bool:
        """Waits so long, and says whether it is known if there is an answer."""
        self._thread.join(max(0.0, within_s))
        return not self._thread.is_alive()

    def result(self) -> list[Message]:
        """The answer, if there is one.

        Raises:
            BaseException: whatever Flower stumbled over, or ended its run with.
        """
        if self._error is not None:
            raise self._error
        return self._found

    def _run(self) -> None:
        try:
            self._found = list(self._grid.pull_messages([self._key]))
        except BaseException as error:  # noqa: BLE001 - raised again where it is asked for
            self._error = error

"""A site's processes: its worker and Flower's SuperNode, each started again when it dies."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedadapt.engines.flower.pipe import is_attended
from fedadapt.engines.flower.processes import EXECUTOR, Child, free_port, program
from fedadapt.errors import ConfigError, EngineError

LONGEST_PAUSE_S = 60.0
GOOD_START_S = 5.0
"""Whoever lives longer than this began well, and is not waited for long when it dies."""

LOOK_S = 0.5
SOCKET = "worker.sock"


@dataclass(frozen=True)
class Way:
    """How a site reaches its server.

    Args:
        address: ``host:port``.
        authority: PEM file that the server's certificate is checked with; None for no TLS.
        key: the site's private key; None if the server does not ask for one.
    """

    address: str
    authority: Path | None
    key: Path | None


class _Kept:
    """A process that is started again when it ends, after a pause that grows while it ends at once."""

    def __init__(self, name: str, child: Child, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._began = self._due = time.monotonic()
        self._pause = 1.0
        self._ended = False
        self.child = child

    def start(self) -> None:
        self._began, self._ended = time.monotonic(), False
        self.child.start()

    def look(self) -> None:
        """Notes that it ended, or starts it again once the pause is over."""
        now = time.monotonic()
        if self.child.alive:
            return
        if not self._ended:
            self._ended = True
            began_well = now - self._began > GOOD_START_S
            self._pause = 1.0 if began_well else min(2 * self._pause, LONGEST_PAUSE_S)
            self._due = now + self._pause
            why = self.child.last_line()
            self._say(f"{self._name} ended ({why}); starting it again in {self._pause:.0f} s")
        elif now >= self._due:
            self.start()


def keep_joined(
    way: Way, worker: Sequence[str], home: Path, say: Callable[[str], None], stop: threading.Event
) -> None:
    """Keeps a worker and a SuperNode running until `stop` is set.

    Args:
        way: to the server.
        worker: the module of the worker and its arguments after the socket.
        home: where Flower keeps its files here, and where the worker's socket is.
        say: told one line at a time.
        stop: ends it.

    Raises:
        ConfigError: a path cannot be told to Flower.
        EngineError: Flower is not installed, or the worker cannot begin; its reason is the message.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    module, *arguments = worker
    command = [sys.executable, "-m", module, str(home / SOCKET), *arguments]
    at_work = _Kept("worker", Child(command, home, home / "worker.log"), say)
    node = _Kept(
        "Flower's SuperNode",
        Child(_node_command(way, home / SOCKET), home, home / "supernode.log", EXECUTOR),
        say,
    )
    (home / SOCKET).unlink(missing_ok=True)
    try:
        at_work.start()
        while not is_attended(home / SOCKET):
            if not at_work.child.alive:
                raise EngineError(f"this site cannot take part: {at_work.child.last_line()}")
            if stop.wait(LOOK_S):
                return
        node.start()
        say(f"joining {way.address}: ready for rounds")
        while not stop.wait(LOOK_S):
            at_work.look()
            node.look()
    finally:
        node.child.stop()
        at_work.child.stop()


def _node_command(way: Way, socket: Path) -> list[str]:
    if set(str(socket)) & set("\"'\\"):
        raise ConfigError(
            f"path {socket} holds a quote or backslash, which Flower cannot be told; move the site file"
        )
    command = [
        program("flower-supernode"),
        f"--superlink={way.address}",
        f"--port={free_port()}",
        f'--node-config=worker="{socket}"',
    ]
    command.append("--insecure" if way.authority is None else f"--root-certificates={way.authority}")
    return command if way.key is None else [*command, f"--auth-supernode-private-key={way.key}"]

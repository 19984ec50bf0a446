"""A site's processes: its worker and Flower's SuperNode, each started again when it dies."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedadapt.engines.flower.pipe import is_attended
from fedadapt.engines.flower.processes import EXECUTOR, GIVEN_UP, Child, free_port, program
from fedadapt.errors import ConfigError, EngineError
from fedadapt.runs.lock import acquire

LONGEST_PAUSE_S = 60.0
GOOD_START_S = 5.0
"""Whoever lives longer than this began well, and is not waited for long when it dies."""

LOOK_S = 0.5
_UNKNOWN_KEY = "Failed to activate SuperNode"
"""What Flower says for it."""

SOCKET, WORKER_LOG = "worker.sock", "worker.log"


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
            why = self.child.last_words()
            if _UNKNOWN_KEY in why:
                why = "not let in: the server still counts on the SuperNode before it, or lacks this site's public key as --site NUMBER=KEY.pub"
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
        home: where Flower keeps its files here, and where the worker's socket is; in the folder of the site.
        say: told one line at a time.
        stop: ends it.

    Raises:
        ConfigError: a path cannot be told to Flower.
        RunError: the site is joined already.
        EngineError: Flower is not installed, the server is not trusted, or the worker cannot begin.
    """
    for folder in (home.parent, home):
        # The mode is that of the last folder alone, and the worker keeps beside ours what nobody else may read.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_server(way)
    module, *arguments = worker
    command = [sys.executable, "-m", module, str(home / SOCKET), *arguments]
    at_work = _Kept("worker", Child(command, home, home / WORKER_LOG), say)
    node = _Kept(
        "Flower's SuperNode",
        Child(node_command(way, home / SOCKET), home, home / "supernode.log", EXECUTOR, GIVEN_UP),
        say,
    )
    lock = acquire(home)
    (home / SOCKET).unlink(missing_ok=True)
    try:
        at_work.start()
        while not is_attended(home / SOCKET):
            if not at_work.child.alive:
                raise EngineError(f"this site cannot take part: {at_work.child.last_words()}")
            if stop.wait(LOOK_S):
                return
        node.start()
        say(f"ready; waiting for the server {way.address} to say hello")
        while not stop.wait(LOOK_S):
            at_work.look()
            node.look()
    finally:
        node.child.stop()
        at_work.child.stop()
        os.close(lock)


def _check_server(way: Way) -> None:
    """Shakes hands with the server once, because Flower tries for ever with a server that is not whom it should be.

    A server that cannot be reached now may be there later; that is no error.
    """
    if way.authority is None:
        return
    host, _, port = way.address.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(way.authority))
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--ca {way.authority} is no certificate in PEM: {error}") from error
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as line:
            context.wrap_socket(line, server_hostname=host.strip("[]")).close()
    except ssl.SSLCertVerificationError as error:
        raise EngineError(
            f"server {way.address} is not trusted: {error.verify_message}; --ca must be the authority that signed its "
            "certificate, and the certificate must name this host"
        ) from error
    except UnicodeError as error:
        raise ConfigError(f"server {way.address} is no name that a host can have ({error})") from error
    except OSError:
        return


def node_command(way: Way, place: Path) -> list[str]:
    """The SuperNode of a site whose worker is at `place`.

    Raises:
        ConfigError: the path cannot be told to Flower.
        EngineError: Flower is not installed.
    """
    if set(str(place)) & set("\"'\\"):
        raise ConfigError(
            f"path {place} holds a quote or backslash, which Flower cannot be told; move the site file"
        )
    command = [
        program("flower-supernode"),
        f"--superlink={way.address}",
        f"--port={free_port()}",
        f'--node-config=worker="{place}"',
    ]
    command.append("--insecure" if way.authority is None else f"--root-certificates={way.authority}")
    return command if way.key is None else [*command, f"--auth-supernode-private-key={way.key}"]

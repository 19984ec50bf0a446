"""A site's process: the SuperNode, started again when it dies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedadapt.engines.flower.processes import Child, free_port, program
from fedadapt.errors import ConfigError

LONGEST_PAUSE_S = 60.0


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


def keep_joined(
    way: Way, settings: dict[str, Path], home: Path, say: Callable[[str], None], stop: threading.Event
) -> None:
    """Keeps a SuperNode running until `stop` is set.

    Args:
        way: to the server.
        settings: what the site's app is told: ``site``, and ``recipe`` if there is one to insist on.
        home: where Flower keeps its files here.
        say: told one line at a time.
        stop: ends it.

    Raises:
        ConfigError: a path cannot be told to Flower.
        EngineError: Flower is not installed.
    """
    home.mkdir(parents=True, exist_ok=True)
    node = Child(_command(way, settings), home, home / "supernode.log")
    pause = 1.0
    try:
        while not stop.is_set():
            node.start()
            say(f"joined {way.address}: waiting for rounds")
            began_well = not stop.wait(5.0) and node.alive
            pause = 1.0 if began_well else min(2 * pause, LONGEST_PAUSE_S)
            while node.alive and not stop.wait(0.5):
                pass
            if not stop.is_set():
                say(f"Flower's SuperNode ended ({node.last_line()}); starting it again in {pause:.0f} s")
                stop.wait(pause)
    finally:
        node.stop()


def _command(way: Way, settings: dict[str, Path]) -> list[str]:
    odd = next((str(path) for path in settings.values() if set(str(path)) & set("\"'\\")), None)
    if odd is not None:
        raise ConfigError(
            f"path {odd} holds a quote or backslash, which Flower cannot be told; move the file"
        )
    told = " ".join(f'{name}="{path}"' for name, path in settings.items())
    command = [
        program("flower-supernode"),
        f"--superlink={way.address}",
        f"--port={free_port()}",
        f"--node-config={told}",
    ]
    command.append("--insecure" if way.authority is None else f"--root-certificates={way.authority}")
    return command if way.key is None else [*command, f"--auth-supernode-private-key={way.key}"]

"""``fedadapt join``."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from fedadapt.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def command(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.", show_default=False)
    ],
    data: Annotated[Path, typer.Option(help="The site file.", show_default=False)],
    ca: Annotated[
        Path | None, typer.Option(help="The authority that signed the server's certificate, PEM.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="This site's private key.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Insist on this recipe; any other is refused.")] = None,
    *,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS and no keys; loopback only.")] = False,
) -> None:
    """Join a federation as a site; stays until it is stopped."""
    from fedadapt.engines.flower import require_flower

    require_flower()
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise ConfigError(
            f"address is {address!r}; it must be HOST:PORT, for instance server.example.org:8443"
        )
    if insecure and host not in LOOPBACK:
        raise ConfigError(f"--insecure works on the loopback interface only, got {host}; give --ca and --key")
    if not insecure and (ca is None or key is None):
        raise ConfigError("joining needs --ca and --key; docs/howto/deploy.md makes them")
    for file in (ca, key, recipe):
        if file is not None and not file.is_file():
            raise ConfigError(f"there is no file {file}")

    from fedadapt.cli.follow import follow
    from fedadapt.engines.flower.node import WORKER_LOG, Way, keep_joined
    from fedadapt.engines.flower.site_file import load_site

    # Reading the site file here loads nothing heavy; all else is checked by the worker before the site joins.
    home = data.absolute().parent / load_site(data).folder / "flower"
    worker = ["fedadapt.experiment.worker", *(str(file.absolute()) for file in (data, recipe) if file)]
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    way = Way(address, None if insecure else ca, None if insecure else key)
    with follow(home / WORKER_LOG, typer.echo):
        keep_joined(way, worker, home, typer.echo, stop)

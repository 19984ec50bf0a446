"""``fedadapt serve``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import (
    MetricsHostOption,
    MetricsPortOption,
    RecipeArgument,
    RunsFolderOption,
    SetOption,
)
from fedadapt.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer copies it
    runs: RunsFolderOption = Path("runs"),
    host: Annotated[str, typer.Option(help="The interface to listen on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8443,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    site: Annotated[
        list[str], typer.Option(metavar="NUMBER=KEY.pub", help="A site's number and public key; repeatable.")
    ] = [],  # noqa: B006
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    *,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS and no keys; loopback only.")] = False,
    prepare: Annotated[
        Path | None,
        typer.Option(help="Start nothing: begin the run, and write the app for `flwr run` to this folder."),
    ] = None,
) -> None:
    """Lead a federation between real sites: start Flower's server, wait for sites, play the rounds."""
    from fedadapt.engines.flower import require_flower

    require_flower()
    if prepare is not None:
        _prepare(recipe, settings, runs, prepare)
        return
    if insecure and host not in LOOPBACK:
        raise ConfigError(
            f"--insecure works on the loopback interface only, got --host {host}; add --host 127.0.0.1"
        )
    if not insecure and (tls_cert is None or tls_key is None):
        raise ConfigError(
            "a federation needs --tls-cert and --tls-key; docs/howto/deploy.md makes them in three lines"
        )
    if not insecure and not site:
        raise ConfigError("name every site with its public key, for instance --site 0=hospital-a.pub")
    for file in (tls_cert, tls_key):
        if file is not None and not file.is_file():
            raise ConfigError(f"there is no file {file}")
    keys = _keys(site)

    from fedadapt.cli.follow import follow
    from fedadapt.engines.flower.server import Address, FlowerServer
    from fedadapt.experiment import load_config
    from fedadapt.experiment.federated import begin, rounds_done, write_numbers
    from fedadapt.report.prometheus import exposed
    from fedadapt.runs.log import LOG

    config = load_config(recipe, settings)
    if keys and max(keys) >= config.data.num_clients:
        raise ConfigError(
            f"--site {max(keys)} is not from 0 to {config.data.num_clients - 1}, the clients of the recipe"
        )
    path = begin(config, runs)
    server = FlowerServer(
        path,
        Address(host, port, None if insecure else tls_cert, None if insecure else tls_key),
        keys,
        lambda: rounds_done(path),
        lambda nodes: write_numbers(path, nodes),
        typer.echo,
    )
    with (
        follow(path / LOG, typer.echo),
        nullcontext() if metrics_port is None else exposed(path, metrics_port, metrics_host),
    ):
        server.keep_going()
    typer.echo(f"done: {path}   see it with: fedadapt report {path}")


def _prepare(recipe: Path, settings: list[str], runs: Path, folder: Path) -> None:
    """For a SuperLink that somebody else keeps."""
    from fedadapt.engines.flower.processes import write_bundle
    from fedadapt.experiment import load_config
    from fedadapt.experiment.federated import begin

    path = begin(load_config(recipe, settings), runs)
    write_bundle(folder, path)
    typer.echo(f"begun: {path}   play it with: flwr run {folder}")


def _keys(sites: list[str]) -> dict[int, Path]:
    from fedadapt.engines.flower.server import read_key

    keys: dict[int, Path] = {}
    owners: dict[str, str] = {}
    for entry in sites:
        number, separator, file = entry.partition("=")
        if not separator or not number.isdigit():
            raise ConfigError(
                f"--site takes NUMBER=KEY.pub, got {entry!r}; for instance --site 0=hospital-a.pub"
            )
        if int(number) in keys:
            raise ConfigError(f"--site {number} is given twice; every site has its own number")
        if not Path(file).is_file():
            raise ConfigError(f"there is no public key {file}")
        owner = owners.setdefault(read_key(Path(file)), number)
        if owner != number:
            raise ConfigError(f"--site {number} has the key of --site {owner}; every site has its own key")
        keys[int(number)] = Path(file)
    return keys

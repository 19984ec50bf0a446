"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[Path, typer.Argument(help="A run file in TOML.", show_default=False)]
RunsArgument = Annotated[list[Path], typer.Argument(help="Run directories.", show_default=False)]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Set a key of the run file, e.g. train.lr=0.1; repeatable."
    ),
]
EngineOption = Annotated[
    str | None,
    typer.Option("--engine", help="Where clients are simulated: local or ray.", show_default=False),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="The head of a Ray cluster.", show_default=False),
]
RunsFolderOption = Annotated[Path, typer.Option("--runs", help="Where run directories are.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Answer scrapes of Prometheus on this port.", show_default=False),
]
MetricsHostOption = Annotated[str, typer.Option(help="The interface for scrapes.")]


def engine_settings(engine: str | None, address: str | None) -> list[str]:
    """What ``--engine`` and ``--address`` set."""
    given = {"engine": engine, "engine.address": address}
    return [f"{key}={value}" for key, value in given.items() if value is not None]

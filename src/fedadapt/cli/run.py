"""``fedadapt run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import (
    AddressOption,
    EngineOption,
    RecipeArgument,
    RunsFolderOption,
    SetOption,
    engine_settings,
)


def command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer copies it
    runs: RunsFolderOption = Path("runs"),
    engine: EngineOption = None,
    address: AddressOption = None,
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")] = False,
) -> None:
    """Run a federation from a run file; writes RUNS/NAME, a round at a time."""
    from fedadapt.cli.console import make_console
    from fedadapt.cli.progress import ProgressWatcher
    from fedadapt.experiment import load_config, run

    config = load_config(recipe, [*engine_settings(engine, address), *settings])
    with ProgressWatcher(make_console()) as watcher:
        path = run(config, runs, overwrite=overwrite, watcher=watcher)
    typer.echo(f"done: {path}   see it with: fedadapt report {path}")

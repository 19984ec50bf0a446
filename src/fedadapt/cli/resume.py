"""``fedadapt resume``."""

from __future__ import annotations

import typer

from fedadapt.cli.options import AddressOption, EngineOption, RunArgument, engine_settings


def command(run: RunArgument, engine: EngineOption = None, address: AddressOption = None) -> None:
    """Go on with a run that was stopped or killed, from its last committed round."""
    from fedadapt.cli.console import make_console
    from fedadapt.cli.progress import ProgressWatcher
    from fedadapt.experiment import resume

    with ProgressWatcher(make_console()) as watcher:
        path = resume(run, engine_settings(engine, address), watcher=watcher)
    typer.echo(f"done: {path}   see it with: fedadapt report {path}")

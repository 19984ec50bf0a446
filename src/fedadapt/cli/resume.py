"""``fedadapt resume``."""

from __future__ import annotations

import typer

from fedadapt.cli.options import RunArgument


def command(run: RunArgument) -> None:
    """Go on with a run that was stopped or killed, from its last committed round."""
    from fedadapt.cli.console import make_console
    from fedadapt.cli.progress import ProgressWatcher
    from fedadapt.experiment import resume

    with ProgressWatcher(make_console()) as watcher:
        path = resume(run, watcher=watcher)
    typer.echo(f"done: {path}   see it with: fedadapt report {path}")

"""``fedadapt watch``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated

import typer

from fedadapt.cli.options import JsonOption, MetricsHostOption, MetricsPortOption, RunArgument


def command(
    run: RunArgument,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    *,
    once: Annotated[bool, typer.Option("--once", help="Show the run as it is now, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Watch a run or a federation while it goes on; ends when it is complete. Reads the run directory only."""
    from rich.live import Live

    from fedadapt.cli.console import make_console
    from fedadapt.report.prometheus import exposed
    from fedadapt.report.watch import follow, frame

    console = make_console()
    shown_in_place = console.is_terminal and not (once or as_json)
    with (
        nullcontext() if metrics_port is None else exposed(run, metrics_port, metrics_host),
        Live(console=console, auto_refresh=False) if shown_in_place else nullcontext() as live,
    ):
        try:
            for (sight,) in follow([run], every):
                if live is not None:
                    live.update(frame(sight), refresh=True)
                elif as_json:
                    typer.echo(json.dumps(sight.as_json()))
                else:
                    console.print(frame(sight))
                if once:
                    return
        except KeyboardInterrupt:
            # Nothing is lost by no longer watching.
            return

"""``fedadapt report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import RunsArgument

REFRESH_S = 5
"""Seconds after which an open live page reads itself again."""


def command(
    runs: RunsArgument,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; by default report.html in the first run.")
    ] = None,
    *,
    live: Annotated[
        bool,
        typer.Option("--live", help="Write the page anew after every round until the runs are complete."),
    ] = False,
) -> None:
    """Write one self-contained page about one or more runs, and print a table."""
    from fedadapt.cli.console import make_console
    from fedadapt.report.gather import summarise
    from fedadapt.report.page import write_page
    from fedadapt.report.tables import compare_table

    page = out or runs[0] / "report.html"
    if live:
        _keep_written(runs, page)
    make_console().print(compare_table([summarise(run) for run in runs]))
    typer.echo(f"written: {write_page(runs, page)}")


def _keep_written(runs: list[Path], page: Path) -> None:
    """Returns when all runs are complete, or at Ctrl-C."""
    from fedadapt.report.page import write_page
    from fedadapt.report.watch import follow

    begun = False
    try:
        for sights in follow(runs):
            if any(sight.run is None for sight in sights):
                continue
            write_page(runs, page, live_s=REFRESH_S)
            if not begun:
                typer.echo(f"open {page}; it follows until the runs are complete")
            begun = True
    except KeyboardInterrupt:
        # The page is written once more, so that the browser does not wait for what nobody writes.
        return

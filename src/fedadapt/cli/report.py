"""``fedadapt report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import RunsArgument


def command(
    runs: RunsArgument,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; by default report.html in the first run.")
    ] = None,
) -> None:
    """Write one self-contained page about one or more runs, and print a table."""
    from fedadapt.cli.console import make_console
    from fedadapt.report.gather import summarise
    from fedadapt.report.page import write_page
    from fedadapt.report.tables import compare_table

    make_console().print(compare_table([summarise(run) for run in runs]))
    typer.echo(f"written: {write_page(runs, out or runs[0] / 'report.html')}")

"""``fedadapt compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import JsonOption, RunsArgument


def command(
    runs: RunsArgument,
    page: Annotated[Path | None, typer.Option("--page", help="Also write a page with figures.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: accuracy, bytes each way, share of the largest, time."""
    from fedadapt.cli.console import make_console
    from fedadapt.report.gather import summarise
    from fedadapt.report.page import write_page
    from fedadapt.report.tables import compare_table

    summaries = [summarise(run) for run in runs]
    if as_json:
        typer.echo(json.dumps([summary.as_json() for summary in summaries], indent=2))
    else:
        make_console().print(compare_table(summaries))
    if page is not None:
        typer.echo(f"written: {write_page(runs, page)}", err=as_json)

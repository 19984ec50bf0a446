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
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Rounds and bytes to this accuracy: 0.9, or 95% of the best. Can be given again.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="The run that percentages of --target are of.", show_default=False),
    ] = None,
    *,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Also print every metric, of the global model and over clients.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: accuracy, bytes each way, share of the largest, time."""
    from fedadapt.cli.console import make_console
    from fedadapt.report.gather import summarise
    from fedadapt.report.measures import drift_columns, measure_columns
    from fedadapt.report.page import write_page
    from fedadapt.report.tables import compare_table, plain_table
    from fedadapt.report.targets import USUAL, make_targets, target_columns, target_note, targets_as_json

    summaries = [summarise(run) for run in runs]
    targets = make_targets(target or (), summaries, reference)
    if as_json:
        told = [summary.as_json() for summary in summaries]
        if target:
            told = [
                one | {"targets": targets_as_json(s, targets)} for one, s in zip(told, summaries, strict=True)
            ]
        typer.echo(json.dumps(told, indent=2))
    else:
        console = make_console()
        console.print(compare_table(summaries))
        if metrics:
            console.print(plain_table(measure_columns(summaries)))
            console.print(plain_table(drift_columns(summaries)))
        if targets:
            console.print(plain_table(target_columns(summaries, targets), target_note(targets, reference)))
    if page is not None:
        written = write_page(runs, page, targets=target or USUAL, reference=reference)
        typer.echo(f"written: {written}", err=as_json)

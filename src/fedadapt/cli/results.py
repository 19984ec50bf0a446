"""``fedadapt results``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    file: Annotated[Path, typer.Argument(help="A results file of a study.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
) -> None:
    """Write a study's tables and figures, each with its numbers beside it, as a folder to put on the web."""
    from fedadapt.report.results import write_results

    typer.echo(f"written: {write_results(file, out)}")

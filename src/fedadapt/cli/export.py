"""``fedadapt export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import RunArgument


def command(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    client: Annotated[
        int | None,
        typer.Option(
            "--client", help="Write this client's own model, where clients have one.", show_default=False
        ),
    ] = None,
    *,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the adapter by itself instead of the merged network.")
    ] = False,
) -> None:
    """Write the trained network as one plain safetensors file, the adapter merged into it."""
    from fedadapt.experiment.export import export_adapter, export_merged

    (export_adapter if adapter else export_merged)(run, out, client)
    typer.echo(f"written: {out}")

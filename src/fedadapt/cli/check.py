"""``fedadapt check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    site: Annotated[Path, typer.Argument(help="A site file.", show_default=False)],
    recipe: Annotated[Path | None, typer.Option(help="Check against this recipe as well.")] = None,
) -> None:
    """See whether a site can join: its data, its versions and, with the recipe, its backbone and classes."""
    from fedadapt.experiment.site import describe_site

    for name, value in describe_site(site, recipe).items():
        typer.echo(f"{name:12} {value}")
    typer.echo(
        "this site can join" if recipe else "the site file and its data are sound; --recipe checks the rest"
    )

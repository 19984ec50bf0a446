"""``fedadapt check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    site: Annotated[Path, typer.Argument(help="A site file.", show_default=False)],
    recipe: Annotated[Path | None, typer.Option(help="Check against this recipe as well.")] = None,
    terms: Annotated[
        Path | None, typer.Option(help="Check against what a server compares: terms.json of its run.")
    ] = None,
) -> None:
    """See whether a site can join: its data, and with what the server says its versions, classes and backbone."""
    from fedadapt.experiment.site import describe_site

    for name, value in describe_site(site, recipe, terms).items():
        typer.echo(f"{name:12} {value}")
    typer.echo(
        "this site can join"
        if terms
        else "what was looked at is sound; --terms checks all that the server will"
    )

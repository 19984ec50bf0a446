"""``fedadapt plan``."""

from __future__ import annotations

import json

import typer

from fedadapt.cli.options import JsonOption, RecipeArgument, SetOption


def command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer copies it
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what would be trained and sent, with counts and bytes, before anything runs."""
    from fedadapt.cli.console import make_console
    from fedadapt.experiment import load_config
    from fedadapt.experiment.build import build
    from fedadapt.experiment.forecast import forecast
    from fedadapt.report.plan import plan_table

    told = forecast(build(load_config(recipe, settings)))
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        for part in plan_table(told):
            make_console().print(part)

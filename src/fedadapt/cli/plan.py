"""``fedadapt plan``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedadapt.cli.options import JsonOption, RecipeArgument, SetOption


def command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer copies it
    budget: Annotated[
        str | None,
        typer.Option(
            help="Propose what keeps within so many bytes a client and direction, e.g. 32KiB.",
            show_default=False,
        ),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what would be trained and sent, with counts and bytes, before anything runs."""
    from fedadapt.cli.console import make_console
    from fedadapt.experiment import load_config
    from fedadapt.experiment.build import build
    from fedadapt.experiment.forecast import forecast
    from fedadapt.experiment.proposals import parse_bytes, propose
    from fedadapt.report.plan import plan_table, proposal_table

    most = None if budget is None else parse_bytes(budget)
    experiment = build(load_config(recipe, settings))
    told = forecast(experiment)
    if most is not None:
        told["budget"] = most
        told["proposals"] = [proposal.as_json() for proposal in propose(experiment, most)]
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        for part in (*plan_table(told), *proposal_table(told)):
            make_console().print(part)

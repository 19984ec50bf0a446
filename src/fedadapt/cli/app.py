"""The commands, and how their errors end."""

from __future__ import annotations

import sys

import typer

from fedadapt.cli import (
    catalogue,
    check,
    compare,
    export,
    inspect,
    join,
    partition,
    plan,
    pretrain,
    report,
    results,
    resume,
    run,
    serve,
    study,
    watch,
)
from fedadapt.errors import FedadaptError

app = typer.Typer(
    name="fedadapt",
    help="Fine-tune one vision model across many parties and send almost nothing: train small adapters, not the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, command in (
    ("run", run.command),
    ("resume", resume.command),
    ("plan", plan.command),
    ("partition", partition.command),
    ("watch", watch.command),
    ("report", report.command),
    ("study", study.command),
    ("results", results.command),
    ("compare", compare.command),
    ("export", export.command),
    ("inspect", inspect.command),
    ("pretrain", pretrain.command),
    ("serve", serve.command),
    ("join", join.command),
    ("check", check.command),
    ("list", catalogue.command),
):
    app.command(name)(command)


def main() -> None:
    """Runs a command; an error the user can mend is one line on standard error and its own exit code."""
    try:
        app(prog_name="fedadapt")
    except FedadaptError as error:
        typer.echo(f"fedadapt: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        typer.echo(f"fedadapt: {error.strerror}: {error.filename or 'output'}", err=True)
        sys.exit(FedadaptError.exit_code)

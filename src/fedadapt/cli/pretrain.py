"""``fedadapt pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import RecipeArgument, SetOption


def command(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(help="The weight file to write.", show_default=False)],
    settings: SetOption = [],  # noqa: B006 - typer copies it
) -> None:
    """Train a backbone centrally; resumes by itself if it was stopped. Writes weights and a model card."""
    from fedadapt.experiment.pretraining import pretrain_backbone

    entry = pretrain_backbone(recipe, out, settings, say=typer.echo)
    typer.echo(f"written: {out} ({100 * entry['test_top1']:.2f} % top-1 on held-out test images)")

"""``fedadapt partition``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import RecipeArgument, SetOption


def command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer copies it
    out: Annotated[Path | None, typer.Option("--out", help="Also write a page with figures.")] = None,
) -> None:
    """Show who holds what: each client's samples by class, and how skewed they are."""
    from fedadapt.cli.console import make_console
    from fedadapt.data.skew import jensen_shannon, label_counts, size_gini
    from fedadapt.experiment import load_config
    from fedadapt.experiment.build import build_data
    from fedadapt.report.partition import partition_page, partition_table

    config = load_config(recipe, settings)
    dataset, _, clients = build_data(config)
    counts = label_counts(dataset.train.labels, clients.train, dataset.num_classes)
    measures: dict[str, float | list[float]] = {
        "Jensen-Shannon divergence from all": jensen_shannon(counts).tolist(),
        "size Gini": size_gini(counts),
    }
    make_console().print(partition_table(counts.tolist(), dataset.class_names, measures))
    if out is None:
        return
    title = f"{dataset.name}, {config.data.partition.name}, {config.data.num_clients} clients"
    typer.echo(f"written: {partition_page(counts.tolist(), dataset.class_names, measures, title, out)}")

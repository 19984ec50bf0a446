"""``fedadapt partition``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import RecipeArgument, SetOption
from fedadapt.errors import ConfigError

MAX_SHOWN, MAX_MEASURED = 200, 2000
"""Clients that are listed, the first ones; and those that means are taken over, evenly spread over the numbers."""


def command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer copies it
    out: Annotated[Path | None, typer.Option("--out", help="Also write a page with figures.")] = None,
) -> None:
    """Show who holds what: each client's samples by class, and how skewed clients are in labels, size and domain."""
    from fedadapt.cli.console import make_console
    from fedadapt.data.skew import effective_classes, jensen_shannon, label_counts, size_gini
    from fedadapt.experiment import load_config
    from fedadapt.experiment.party_data import build_data, need_samples
    from fedadapt.report.partition import partition_page, partition_table

    if out is not None and out.resolve() == recipe.resolve():
        raise ConfigError(f"--out is the recipe itself, {recipe}; name another file")
    config = load_config(recipe, settings)
    dataset, _, clients = build_data(config)
    need_samples(clients, config)
    held = clients.train
    some = held[:: -(-len(held) // MAX_MEASURED)]
    measured, counts = (
        label_counts(dataset.train.labels, part, dataset.num_classes) for part in (some, held[:MAX_SHOWN])
    )
    measures: dict[str, float | list[float]] = {
        "effective classes": effective_classes(counts).tolist(),
        "Jensen-Shannon divergence from all": jensen_shannon(counts, measured).tolist(),
        "mean effective classes": float(effective_classes(measured).mean()),
        "mean Jensen-Shannon divergence": float(jensen_shannon(measured).mean()),
        "size Gini": size_gini(measured),
    }
    by_domain = None
    if dataset.train.domains is not None:
        known, domains = dataset.train.domains.unique(return_inverse=True)
        by_domain = label_counts(domains, held[:MAX_SHOWN], len(known)).tolist()
        measures["mean Jensen-Shannon divergence of domains"] = float(
            jensen_shannon(label_counts(domains, some, len(known))).mean()
        )
    title = f"{dataset.name}, {config.data.partition.name}, {len(held):,} clients"
    title += f", the first {MAX_SHOWN}" if len(held) > MAX_SHOWN else ""
    make_console().print(partition_table(counts.tolist(), dataset.class_names, measures))
    if out is not None:
        page = partition_page(counts.tolist(), dataset.class_names, measures, title, out, by_domain)
        typer.echo(f"written: {page}")

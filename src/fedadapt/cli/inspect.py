"""``fedadapt inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedadapt.cli.options import JsonOption


def command(
    file: Annotated[
        Path, typer.Argument(help="An adapter, a network, a graph, or a PEFT folder.", show_default=False)
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say what a file is: an adapter and the backbone it needs, or a network and the run it is from."""
    from fedadapt.experiment.inspection import inspect

    found = inspect(file)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif found["kind"] == "adapter":
        _say_adapter(found)
    else:
        typer.echo(found.pop("kind"))
        for key, value in found.items():
            typer.echo(f"  {key:<24} {value if isinstance(value, str) else json.dumps(value)}")


def _say_adapter(manifest: dict[str, Any]) -> None:
    typer.echo(
        f"adapter {manifest['adapter']!r} with norms {manifest['norms']!r}, {len(manifest['sites'])} sites"
    )
    typer.echo(f"for backbone {manifest['backbone']!r} with digest {manifest['backbone_digest']}")
    for name, entry in manifest["tensors"].items():
        typer.echo(f"  {entry['group']:<16} {name}  {entry['shape']}")

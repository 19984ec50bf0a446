"""``fedadapt inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import JsonOption


def command(
    file: Annotated[Path, typer.Argument(help="An adapter file.", show_default=False)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say what an adapter file is: its adapter, backbone, sites and tensors."""
    from fedadapt.adapters.store import read_manifest

    manifest = read_manifest(file)
    if as_json:
        typer.echo(json.dumps(manifest, indent=2))
        return
    typer.echo(
        f"adapter {manifest['adapter']!r} with norms {manifest['norms']!r}, {len(manifest['sites'])} sites"
    )
    typer.echo(f"for backbone {manifest['backbone']!r} with digest {manifest['backbone_digest']}")
    for name, entry in manifest["tensors"].items():
        typer.echo(f"  {entry['group']:<16} {name}  {entry['shape']}")

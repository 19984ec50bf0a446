"""``fedadapt list``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedadapt.cli.options import JsonOption


def command(
    kind: Annotated[
        str | None, typer.Argument(help="Only this kind, e.g. adapter.", show_default=False)
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List every adapter, algorithm, backbone, codec, engine, norm policy, partition and source, with its options."""
    from fedadapt.errors import UnknownName
    from fedadapt.registry import ROOMS, describe, names

    if kind is not None and kind not in ROOMS:
        raise UnknownName(f"unknown kind {kind!r}; known: {', '.join(sorted(ROOMS))}")
    kinds = sorted(ROOMS) if kind is None else [kind]
    table = {k: {name: describe(k, name) for name in names(k)} for k in kinds}
    if as_json:
        listed = {
            k: {n: {"summary": s, "options": o} for n, (s, o) in entries.items()}
            for k, entries in table.items()
        }
        typer.echo(json.dumps(listed, indent=2))
        return
    for k, entries in table.items():
        typer.echo(f"{k}:")
        for name, (summary, options) in entries.items():
            typer.echo(f"  {name:<14} {summary}")
            for option, default in options.items():
                typer.echo(f"  {'':<14}   {option} ({default})")

"""``fedadapt export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    run: Annotated[
        Path,
        typer.Argument(help="A run directory; or a site file, for the site's own model.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="The file to write; for peft a folder.", show_default=False)],
    client: Annotated[
        int | None,
        typer.Option(
            "--client", help="Write this client's own model, where clients have one.", show_default=False
        ),
    ] = None,
    *,
    form: Annotated[
        Literal["safetensors", "torch", "onnx", "adapter", "peft"],
        typer.Option(
            "--format",
            help="The network with the adapter merged into it, as weights, a torch.export program or an ONNX graph; or "
            "the adapter by itself, as a file of ours or in PEFT's layout.",
        ),
    ] = "safetensors",
) -> None:
    """Write the trained network, by default as one plain safetensors file with the adapter merged into it."""
    from fedadapt.experiment.export import Format, export

    trained = export(run, out, Format(form), client)
    of = "" if trained.client is None else f", client {trained.client}"
    typer.echo(f"written: {out}   run {trained.experiment.config.name}, round {trained.round}{of}")

"""The table of docs/reference/adapters.md: what each adapter trains and sends on each model.

``python docs/adapters_table.py > docs/reference/adapters.md`` writes the page; ``--models resnet26`` prints the rows of
one model. Nothing is trained: weights are random, counts are those of `fedadapt plan` for 10 classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from fedadapt.adapters import attach
from fedadapt.backbones import Backbone
from fedadapt.codecs import make_codec
from fedadapt.errors import AttachError
from fedadapt.experiment.forecast import message_bytes
from fedadapt.federation.frame import Kind
from fedadapt.federation.messages import Wire
from fedadapt.federation.plan import make_plan
from fedadapt.registry import create

CLASSES = 10

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet26": ("resnet26", {"weights": "random"}),
    **{
        model: ("timm", {"model": model, "pretrained": False, "image_size": size})
        for model, size in (
            ("resnet18", 32),
            ("resnet50", 32),
            ("regnety_004", 64),
            ("convnext_tiny", 64),
            ("efficientnet_b0", 64),
            ("mobilenetv3_large_100", 64),
            ("vit_tiny_patch16_224", 224),
            ("swin_tiny_patch4_window7_224", 224),
        )
    },
}
"""Backbones by the name they have in the table; of a transformer the number of parameters depends on the image."""

ADAPTERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("full", {}),
    ("parallel", {}),
    ("series", {}),
    ("lora", {"rank": 8}),
    ("grouped", {"groups": 8}),
    ("bottleneck", {"rank": 8}),
    ("low_rank", {"rank": 8}),
    ("seeded", {"rank": 8}),
    ("diagonal", {}),
    ("norm_head", {}),
    ("bias", {}),
    ("head", {}),
)

HEADER = """# What adapters train and send

Every adapter with its own options and the ones named, on models with a head for 10 classes: the values that are trained
(the adapter's, those of norms and head among them), the bytes of one upload in fp32 with its framing, and their share
of the whole network. A codec makes the bytes fewer: `fedadapt plan` says for your recipe. A rank is clipped where a
site has fewer channels, groups where they do not divide them. An adapter that a model has no site for is left out; by
default branches sit beside 3x3 convolutions, or where a family has its own; `adapter.sites` says where else
([how](../howto/adapters.md)).

Written by `python docs/adapters_table.py > docs/reference/adapters.md`.

| model | adapter | sites | trained | sent | share |
|---|---|---:|---:|---:|---:|"""


def rows(model: str) -> Iterator[str]:
    """The lines of one model, one for each adapter that finds a site."""
    name, options = MODELS[model]
    backbone: Backbone = create("backbone", name, options)(CLASSES, torch.Generator().manual_seed(0))
    for adapter, chosen in ADAPTERS:
        row = _row(backbone, model, adapter, chosen)
        if row is not None:
            yield row


def _row(backbone: Backbone, model: str, adapter: str, options: dict[str, Any]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    try:
        adapted = attach(
            backbone, create("adapter", adapter, options), create("norm policy", "frozen"), generator
        )
    except AttachError:
        return None
    plan = make_plan(adapted, adapted.kept, {})
    wire = Wire(plan, make_codec("float32"), adapted.digest)
    sent = message_bytes(wire, Kind.DOWNLOAD, 1, 0) or 0
    trained = sum(row.num_values for row in plan.rows)
    share = 100 * sent / (4 * backbone.num_parameters)
    named = ", ".join([f"`{adapter}`", *(f"{key} {value}" for key, value in options.items())])
    sites = len(adapted.sites) or "–"
    return f"| {model} | {named} | {sites} | {trained:,} | {sent:,} | {share:.2f} % |"


def main() -> None:
    """Prints the page, or the rows of some models."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    chosen = parser.parse_args().models
    if chosen is None:
        print(HEADER)
    for model in chosen or MODELS:
        for row in rows(model):
            print(row, flush=True)


if __name__ == "__main__":
    main()

"""Adapter files: one safetensors document with a manifest that says what it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedadapt.adapters.attach import AdaptedModel
from fedadapt.errors import AttachError
from fedadapt.params import Params

FORMAT = "fedadapt-adapter-1"


def save_adapter(model: AdaptedModel, params: Params, path: Path) -> None:
    """Writes the tensors of one client or of the global model, replacing `path` atomically.

    The manifest holds the adapter's name, its sites, the group, shape and name of every tensor, the digest of
    the backbone, and the seed of what branches do not train.
    """
    manifest = {
        "format": FORMAT,
        "adapter": model.adapter.name,
        "norms": model.policy.name,
        "backbone": model.backbone.name,
        "backbone_digest": model.backbone.digest,
        "head": model.head.name,
        "seed": model.seed,
        "digest": model.digest,
        "sites": [site.describe() for site in model.sites],
        "tensors": {n: {"group": model.groups[n].value, "shape": list(t.shape)} for n, t in params.items()},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in params.items()}
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, part, metadata={"manifest": json.dumps(manifest)})
    part.replace(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an adapter file.

    Raises:
        AttachError: `path` is not a readable adapter file.
    """
    try:
        with safe_open(path, "pt") as file:
            manifest: dict[str, Any] = json.loads((file.metadata() or {})["manifest"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise AttachError(
            f"{path} is not a readable adapter file ({type(error).__name__}: {error})"
        ) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise AttachError(f"{path} has format {found!r}, this version reads {FORMAT!r}")
    return manifest


def load_adapter(model: AdaptedModel, path: Path) -> Params:
    """The tensors of an adapter file, checked against the model they are for.

    Raises:
        AttachError: the file is damaged, or was made for another backbone, adapter or shape.
    """
    manifest = read_manifest(path)
    try:
        name, digest = manifest["backbone"], manifest["backbone_digest"]
        # Files from before there were seeded branches have neither.
        seed, frozen = manifest.get("seed"), manifest.get("digest", digest)
        stored = {tensor: entry["shape"] for tensor, entry in manifest["tensors"].items()}
        with safe_open(path, "pt") as file:
            tensors = {tensor: file.get_tensor(tensor) for tensor in stored}
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError) as error:
        raise AttachError(
            f"{path} is not a readable adapter file ({type(error).__name__}: {error})"
        ) from error
    if digest != model.backbone.digest:
        raise AttachError(
            f"{path} was trained on backbone {name!r} ({digest[:12]}), "
            f"not on {model.backbone.name!r} ({model.backbone.digest[:12]}); load that backbone first, rounded as its run rounded it"
        )
    shapes = {tensor: list(value.shape) for tensor, value in model.start.items()}
    for found in (stored, {tensor: list(value.shape) for tensor, value in tensors.items()}):
        if shapes != found:
            odd = min(n for n in {*shapes, *found} if shapes.get(n) != found.get(n))
            raise AttachError(
                f"{path} does not fit adapter {model.adapter.name!r} here: tensor {odd!r} is {found.get(odd)} in the file "
                f"and {shapes.get(odd)} in the model"
            )
    if frozen != model.digest:
        raise AttachError(
            f"{path} was trained beside the fixed matrices of seed {seed}, here they are of seed {model.seed}; attach the "
            "adapter with that seed"
        )
    return {tensor: tensors[tensor] for tensor in shapes}

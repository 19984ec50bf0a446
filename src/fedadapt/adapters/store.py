"""Adapter files: one safetensors document with a manifest that says what it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedadapt.adapters.attach import AdaptedModel
from fedadapt.errors import AttachError
from fedadapt.files import from_json, write_whole
from fedadapt.params import Params

FORMAT = "fedadapt-adapter-1"


def save_adapter(model: AdaptedModel, params: Params, path: str | Path) -> None:
    """Writes the tensors of one client or of the global model, replacing `path` atomically.

    The manifest holds the adapter's name, its sites, the group, shape and name of every tensor, the digest of
    the backbone, the factor on branches, and the seed of what they do not train.

    Raises:
        AttachError: `params` are not those of the model, or not finite.
        OSError: the file cannot be written; the old one, if any, is untouched.
    """
    model.check(params, "what is to be saved")
    manifest = {
        "format": FORMAT,
        "adapter": model.adapter.name,
        "scaling": _scaling(model),
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
    write_whole(Path(path), save(tensors, metadata={"manifest": json.dumps(manifest)}))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of an adapter file.

    Raises:
        AttachError: `path` is not a readable adapter file.
    """
    try:
        with safe_open(path, "pt") as file:
            manifest: dict[str, Any] = from_json((file.metadata() or {})["manifest"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise AttachError(
            f"{path} is not a readable adapter file ({type(error).__name__}: {error})"
        ) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise AttachError(f"{path} has format {found!r}, this version reads {FORMAT!r}")
    if not _is_whole(manifest):
        raise AttachError(
            f"{path} is not a readable adapter file (it lacks what it should say); write or copy it again"
        )
    return manifest


def _is_whole(manifest: dict[str, Any]) -> bool:
    try:
        entries = manifest["tensors"].values()
        said = {"adapter", "norms", "backbone", "backbone_digest"} <= manifest.keys()
        return (
            said
            and isinstance(manifest["sites"], list)
            and all(e["group"] and e["shape"] is not None for e in entries)
        )
    except (KeyError, TypeError, AttributeError):
        return False


def load_adapter(model: AdaptedModel, path: str | Path) -> Params:
    """The tensors of an adapter file, checked against the model they are for.

    Raises:
        AttachError: the file is damaged or not finite, or was made for another backbone, adapter or shape.
    """
    manifest = read_manifest(path)
    try:
        adapter, name, digest = (manifest[key] for key in ("adapter", "backbone", "backbone_digest"))
        # Files from before there was a factor in them are taken to have the model's.
        scaling = manifest.get("scaling", _scaling(model))
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
    if (adapter, scaling) != (model.adapter.name, _scaling(model)):
        raise AttachError(
            f"{path} is of adapter {adapter!r} with scaling {scaling}, here it is {model.adapter.name!r} with "
            f"{_scaling(model)}; attach what the file says"
        )
    model.check(tensors, str(path))
    if stored != {tensor: list(value.shape) for tensor, value in tensors.items()}:
        raise AttachError(f"{path} is damaged: it holds other shapes than it says; export it again")
    if frozen != model.digest:
        raise AttachError(
            f"{path} was trained beside the fixed matrices of seed {seed}, here they are of seed {model.seed}; make the model "
            "with that seed: AdaptedModel(backbone, adapter, norms, seed)"
        )
    return {tensor: tensors[tensor].float() for tensor in model.start}


def _scaling(model: AdaptedModel) -> float:
    branches = model.adapter.branches
    return 1.0 if branches is None else branches.placement.scaling

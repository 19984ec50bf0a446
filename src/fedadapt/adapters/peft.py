"""The directory layout of Hugging Face's PEFT, for adapters that are LoRA: two files, written and read without PEFT.

``adapter_config.json`` says where the pairs of matrices sit and what they are scaled by, ``adapter_model.safetensors``
holds them, ``lora_A`` and ``lora_B`` by site, and norms and head whole as ``modules_to_save``. A pair under the centre
of a kernel is a LoRA whose first kernel is zero but for its centre.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedadapt.adapters.attach import AdaptedModel
from fedadapt.adapters.merge import branch_of, merge
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.errors import AttachError
from fedadapt.files import from_json, write_whole
from fedadapt.params import Group, Params

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PAIR = {"down", "up"}
_UNKNOWN = ("use_dora", "use_rslora", "fan_in_fan_out", "lora_bias")
"""Variants of LoRA that compute something else."""


def save_peft(model: AdaptedModel, params: Params, folder: Path) -> None:
    """Writes the tensors of one client or of the global model as a PEFT adapter.

    ``PeftModel.from_pretrained(backbone, folder)`` computes what `model` does.

    Args:
        model: with an adapter of two matrices a site: ``lora``, ``low_rank`` or ``seeded``.
        params: without client axis.
        folder: made if it is not there.

    Raises:
        AttachError: PEFT cannot express the adapter, or cannot name the norms and the head.
    """
    placement, plain, exact = _placement(model), merge(model, params), model.exact()
    values = {name: tensor.detach().cpu() for name, tensor in params.items()}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for site in model.sites:
        branch = branch_of(exact, values, site)
        _refuse_site(model, site, branch)
        pair = _to_lora(site, branch["down"], branch["up"])
        tensors |= {f"{_PREFIX}{site.name}.lora_{half}.weight": t for half, t in zip("AB", pair, strict=True)}
        ranks[site.name] = pair[0].shape[0]
    saved = _saved_modules(model)
    for name in saved:
        for tensor, value in plain.get_submodule(name).state_dict().items():
            tensors[f"{_PREFIX}{name}.{tensor}"] = value
    document = _config(model.backbone.name, placement, ranks, saved)
    metadata = {"format": "pt", "backbone": model.backbone.name, "backbone_digest": model.backbone.digest}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(folder / TENSORS, save(whole, metadata=metadata))
    write_whole(folder / CONFIG, (json.dumps(document, indent=2) + "\n").encode())


def load_peft(model: AdaptedModel, folder: Path) -> Params:
    """The tensors of a PEFT adapter, for a model that has the same pairs of matrices.

    What PEFT scales otherwise is scaled here. Norms and head come from ``modules_to_save`` if they are there, and
    stay at their start if not.

    Args:
        model: attached with ``lora``, ``low_rank`` or ``seeded``, with the file's rank at every site.
        folder: as PEFT or `save_peft` wrote it.

    Raises:
        AttachError: it is no LoRA, sits elsewhere, has other ranks, is not finite, or is of a variant that computes
            otherwise.
    """
    config, tensors = read_peft(folder), _read_tensors(folder)
    params = {name: tensor.detach().cpu().clone() for name, tensor in model.start.items()}
    placement, exact = _placement(model), model.exact()
    if placement.scaling == 0:
        raise AttachError("adapter.sites.scaling is 0, no LoRA can be scaled to it; use another")
    for site in model.sites:
        halves = [tensors.pop(f"{_PREFIX}{site.name}.lora_{half}.weight", None) for half in "AB"]
        if halves[0] is None or halves[1] is None:
            raise AttachError(f"{folder} has no LoRA at {site.name!r}; attach the adapter to its sites alone")
        factor = _scaling(config, site.name, folder) / placement.scaling
        _take_pair(exact, params, site, halves[0], factor * halves[1].float(), folder)
    for name, own in params.items():
        saved = tensors.pop(f"{_PREFIX}{name}", own)
        params[name] = saved.to(own.dtype)
    model.check(params, str(folder))
    _refuse_rest(model, folder, tensors)
    return params


def _take_pair(
    model: AdaptedModel, params: Params, site: Site, down: Tensor, up: Tensor, folder: Path
) -> None:
    """Puts PEFT's matrices of one site into `params`.

    Raises:
        AttachError: the adapter there has other ranks, fewer taps, or a first matrix that is not trained.
    """
    adapter = model.adapter.name
    branch = branch_of(model, params, site)
    _refuse_site(model, site, branch)
    wanted = [tuple(half.shape) for half in _to_lora(site, branch["down"], branch["up"])]
    if [tuple(down.shape), tuple(up.shape)] != wanted:
        raise AttachError(
            f"{folder} has matrices of {tuple(down.shape)} and {tuple(up.shape)} at {site.name!r}, adapter {adapter!r} here "
            f"of {wanted[0]} and {wanted[1]}; attach it with the file's rank"
        )
    first = _from_lora(site, down.float(), branch["down"])
    if not torch.equal(_to_lora(site, first, branch["up"])[0], down.float()):
        raise AttachError(
            f"the LoRA of {folder} at {site.name!r} uses more of its kernel than adapter {adapter!r} has; attach 'lora'"
        )
    if f"{site.name}.adapter.down" in params:
        params[f"{site.name}.adapter.down"] = first
    elif not torch.equal(first, branch["down"].to(down.dtype).float()):
        raise AttachError(
            f"the LoRA of {folder} at {site.name!r} has another first matrix than the one that follows from the seed of "
            f"adapter {adapter!r}; attach 'low_rank'"
        )
    params[f"{site.name}.adapter.up"] = up.reshape(up.shape[:2])


def read_peft(folder: Path) -> dict[str, Any]:
    """The configuration of a PEFT adapter.

    Raises:
        AttachError: there is none that can be read, or it is not of plain LoRA.
    """
    try:
        config = from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AttachError(
            f"{folder} is no readable PEFT adapter ({type(error).__name__}: {error})"
        ) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise AttachError(f"{folder} holds a PEFT adapter of type {kind!r}; only 'LORA' can be read")
    odd = next((key for key in _UNKNOWN if config.get(key)), None)
    if odd is None and config.get("bias", "none") != "none":
        odd = "bias"
    if odd is not None:
        raise AttachError(
            f"the LoRA of {folder} sets {odd}={config[odd]!r}, which computes otherwise than ours"
        )
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    try:
        with safe_open(folder / TENSORS, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise AttachError(
            f"{folder} is no readable PEFT adapter ({type(error).__name__}: {error})"
        ) from error


def _placement(model: AdaptedModel) -> Placement:
    branches = model.adapter.branches
    if branches is None or not model.sites:
        raise AttachError(
            f"adapter {model.adapter.name!r} has no branches here, so it is no LoRA; export the network"
        )
    return branches.placement


def _config(backbone: str, placement: Placement, ranks: dict[str, int], saved: list[str]) -> dict[str, Any]:
    scaling, most = placement.scaling, max(ranks.values())
    # PEFT looks for a name at the end of a module's unless it is anchored.
    exact = {f"^{re.escape(name)}": rank for name, rank in ranks.items()}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": backbone,
        "inference_mode": True,
        "r": most,
        "lora_alpha": scaling * most,
        "lora_dropout": placement.dropout,
        "target_modules": "|".join(re.escape(name) for name in ranks),
        "rank_pattern": exact,
        "alpha_pattern": {pattern: scaling * rank for pattern, rank in exact.items()},
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _saved_modules(model: AdaptedModel) -> list[str]:
    """The norms and the head, which PEFT saves whole.

    Raises:
        AttachError: PEFT, which looks at the ends of names, would take another module for one of them.
    """
    changed = {name for name in model.start if model.groups[name] is not Group.ADAPTER}
    saved = sorted(
        {model.backbone.head if model.groups[n] is Group.HEAD else n.rpartition(".")[0] for n in changed}
    )
    # What has no tensors is saved as nothing, whoever takes it for what.
    names = {name for name, module in model.backbone.module.named_modules() if name and module.state_dict()}
    taken = {name for name in names if any(name.endswith(one) for one in saved)}
    if taken - set(saved):
        other = min(taken - set(saved))
        raise AttachError(
            f"PEFT finds modules by the end of their names and would take {other!r} for a norm or head; name the modules "
            "of the backbone apart, or export the network"
        )
    return saved


def _refuse_site(model: AdaptedModel, site: Site, branch: dict[str, Tensor]) -> None:
    """Raises if PEFT's LoRA cannot sit there."""
    if set(branch) != _PAIR:
        raise AttachError(
            f"adapter {model.adapter.name!r} is not a pair of matrices, so it is no LoRA that PEFT could read; "
            "export the network or the adapter file"
        )
    conv = site.module
    if isinstance(conv, nn.Conv2d) and set(conv.dilation) != {1}:
        raise AttachError(
            f"PEFT's LoRA has no dilation, the convolution at {site.name!r} has; export the network"
        )
    if branch["down"].ndim == 4 and isinstance(conv, nn.Conv2d) and conv.padding_mode != "zeros":
        raise AttachError(
            f"PEFT's LoRA pads with zeros, the convolution at {site.name!r} in mode {conv.padding_mode!r}; export the network"
        )


def _to_lora(site: Site, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """PEFT's two weights: its first kernel is not grouped, so groups are blocks of it."""
    if site.kind == "linear":
        return down, up
    if down.ndim == 2:
        height, width = (k // 2 for k in site.kernel_size)
        kernel = down.new_zeros(*down.shape, *site.kernel_size)
        kernel[:, :, height, width] = down
    else:
        kernel = down
    whole = kernel.new_zeros(kernel.shape[0], site.in_channels, *site.kernel_size)
    rank, channels = kernel.shape[0] // site.groups, site.in_per_group
    for group in range(site.groups):
        rows, columns = (slice(group * n, (group + 1) * n) for n in (rank, channels))
        whole[rows, columns] = kernel[rows]
    return whole, up[:, :, None, None]


def _from_lora(site: Site, down: Tensor, own: Tensor) -> Tensor:
    """Our first matrix: of PEFT's kernel the blocks, and of the taps those that we have."""
    if site.kind == "linear":
        return down
    rank, channels = down.shape[0] // site.groups, site.in_per_group
    kernel = torch.cat(
        [down[g * rank : (g + 1) * rank, g * channels : (g + 1) * channels] for g in range(site.groups)]
    )
    height, width = (k // 2 for k in site.kernel_size)
    return kernel if own.ndim == 4 else kernel[:, :, height, width]


def _scaling(config: dict[str, Any], name: str, folder: Path) -> float:
    """What a pair is multiplied with, as PEFT looks it up: by the first pattern that the end of the name matches."""
    numbers = []
    try:
        for patterns, default in (("alpha_pattern", "lora_alpha"), ("rank_pattern", "r")):
            found = (config.get(patterns) or {}).items()
            numbers.append(
                float(
                    next((v for p, v in found if re.match(rf"(.*\.)?({p})$", name)), config.get(default, 8))
                )
            )
        return numbers[0] / numbers[1]
    except (re.error, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise AttachError(f"{folder} does not say what it is scaled by ({error}); write it again") from error


def _refuse_rest(model: AdaptedModel, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raises if a tensor was not used and is not what the backbone has anyway."""
    state = model.backbone.module.state_dict()
    for name, tensor in tensors.items():
        own = state.get(name.removeprefix(_PREFIX))
        if own is None or own.shape != tensor.shape or not torch.equal(own.cpu().to(tensor.dtype), tensor):
            raise AttachError(
                f"{folder} has {name.removeprefix(_PREFIX)!r}, which adapter {model.adapter.name!r} here does not train; "
                "attach it to the file's sites, and train what the file has"
            )

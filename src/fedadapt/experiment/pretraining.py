"""Pretrains a backbone from a recipe and writes its weight file with a model card beside it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from fedadapt.backbones.backbone import content_digest
from fedadapt.backbones.builtin import RANDOM
from fedadapt.backbones.weights import save_weights
from fedadapt.data.dataset import Dataset
from fedadapt.errors import BackboneError, ConfigError, RunError
from fedadapt.experiment.build import processor
from fedadapt.experiment.config import apply_setting
from fedadapt.files import read_toml, write_whole
from fedadapt.params import is_finite
from fedadapt.registry import Choice, Section, first_problem
from fedadapt.seeds import Seeds
from fedadapt.training.config import resolve_device
from fedadapt.training.pretrain import PretrainConfig, pretrain, top1


class PretrainRecipe(Section):
    """A pretraining: which network, which data, how."""

    backbone: Choice = Choice(name="resnet26")
    source: Choice
    device: str = "cpu"
    terms: str = Field(default="", description="under which the data may be used; goes into the model card")
    train: PretrainConfig = PretrainConfig()


def pretrain_backbone(
    recipe_path: Path, out: Path, settings: Sequence[str] = (), *, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains, or goes on training, and writes `out` in fp16 with ``OUT.md``, its model card.

    The state is kept in ``OUT.state`` until the end; calling again with the same arguments goes on from it.

    Returns:
        What the card says, as JSON values.

    Raises:
        ConfigError: the recipe cannot be read.
        RunError: training diverged, or something cannot be written; whole epochs are safe.
        BackboneError: its weights are beyond fp16.
    """
    recipe = _load(recipe_path, settings)
    device = str(resolve_device(recipe.device, "device"))
    dataset: Dataset = recipe.source.create("source")
    choice = _start(recipe.backbone)
    backbone = choice.create("backbone")(dataset.num_classes, Seeds(recipe.train.seed).torch("backbone"))
    given = backbone.mean is not None or (choice.model_extra or {}).get("weights", RANDOM) != RANDOM
    started_from = content_digest(backbone.module, backbone.head) if given else None
    model = backbone.module.requires_grad_(requires_grad=True)
    state = out.with_name(f"{out.name}.state")
    log = pretrain(
        model,
        dataset,
        recipe.train,
        state,
        started_from=started_from,
        device=device,
        on_epoch=lambda entry: say(json.dumps(entry)),
    )
    model.cpu().half().float()
    if not is_finite(dict(model.state_dict())):
        raise BackboneError(
            f"{backbone.name} has values beyond those of fp16, as which it is stored; lower train.lr, give another FILE"
        )
    entry = {
        "backbone": backbone.name,
        "started_from": started_from,
        "data": dataset.name,
        "terms": recipe.terms,
        "classes": dataset.num_classes,
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "test_top1": top1(model, dataset.test, dataset.mean, dataset.std),
        "validation_top1": log[-1].get("validation_top1"),
        "mean": dataset.mean,
        "std": dataset.std,
        "digest": content_digest(model, backbone.head),
        "recipe": recipe.train.model_dump(),
        "wall_s": sum(e["wall_s"] for e in log),
        "cpu_s": sum(e["cpu_s"] for e in log),
        "hardware": f"{processor()}, {torch.get_num_threads()} threads, {device}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "log": log,
    }
    try:
        save_weights(model, out, entry, lambda name, tensor: {name: tensor.half()})
        write_whole(out.with_name(f"{out.name}.md"), model_card(entry).encode())
    except OSError as error:
        raise RunError(
            f"cannot write {out}: {error.strerror}; make room and give the command again"
        ) from error
    state.unlink()
    return entry


def _start(choice: Choice) -> Choice:
    """The network to train: from random weights, unless the recipe itself names weights to go on from."""
    if choice.name == "timm" or "weights" in (choice.model_extra or {}):
        return choice
    return choice.model_copy(update={"weights": RANDOM})


def model_card(entry: dict[str, Any]) -> str:
    """The model card of a weight file, in Markdown."""
    validation = entry["validation_top1"]
    lines = [
        f"# {entry['backbone']}, pretrained on {entry['data']}",
        "",
        "| | |",
        "|---|---|",
        f"| top-1 on {entry['test_images']:,} held-out test images | {100 * entry['test_top1']:.2f} % |",
        f"| top-1 on validation images | {'not measured' if validation is None else f'{100 * validation:.2f} %'} |",
        f"| training data | {entry['train_images']:,} images, {entry['classes']} classes |",
        f"| terms of the data | {entry['terms'] or 'not stated'} |",
        f"| started from | {f'`{origin}` (digest without head)' if (origin := entry['started_from']) else 'random weights'} |",
        f"| digest (without head) | `{entry['digest']}` |",
        "| stored as | fp16 safetensors |",
        f"| pixel mean, std | {entry['mean']}, {entry['std']} |",
        f"| hardware | {entry['hardware']} |",
        f"| time | {entry['wall_s'] / 60:.0f} minutes, {entry['cpu_s'] / 60:.0f} CPU minutes |",
        f"| versions | Python {entry['versions']['python']}, torch {entry['versions']['torch']} |",
        "",
        "## Recipe",
        "",
        *[f"- {key}: {value}" for key, value in entry["recipe"].items()],
        "",
        "## Training",
        "",
        "| epoch | pixels | train loss | validation top-1 | minutes |",
        "|---|---|---|---|---|",
        *[
            f"| {e['epoch']} | {e['pixels']} | {e['train_loss']:.3f} | "
            f"{100 * e.get('validation_top1', float('nan')):.2f} % | {e['wall_s'] / 60:.1f} |"
            for e in entry["log"]
        ],
        "",
    ]
    return "\n".join(lines)


def _load(path: Path, settings: Sequence[str]) -> PretrainRecipe:
    document = read_toml(path, "recipe")
    for setting in settings:
        apply_setting(document, setting, PretrainRecipe)
    try:
        return PretrainRecipe.model_validate(document)
    except ValidationError as error:
        raise ConfigError(first_problem(error, dict.fromkeys(PretrainRecipe.model_fields, ""))) from None

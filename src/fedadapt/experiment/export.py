"""Takes the trained network out of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from fedadapt.adapters import merge, save_adapter
from fedadapt.backbones.weights import save_weights
from fedadapt.experiment.build import Experiment, build
from fedadapt.experiment.config import make_config
from fedadapt.params import Params
from fedadapt.runs.store import RunStore


def export_merged(run: Path, out: Path) -> None:
    """Writes the global model of a run as a plain network that computes the same without adapters.

    Its tensors have the backbone's own names; class names and pixel moments are in the metadata.

    Raises:
        AttachError: the adapter cannot be merged.
        RunError: there is no such run.
    """
    experiment, params, last = _trained(run)
    metadata = {
        "backbone": experiment.backbone.name,
        "mean": experiment.mean,
        "std": experiment.std,
        "class_names": experiment.dataset.class_names,
        "run": experiment.config.name,
        "round": last,
    }
    save_weights(merge(experiment.model, params), out, metadata, torch.float32)


def export_adapter(run: Path, out: Path) -> None:
    """Writes the global adapter, norms and head of a run as an adapter file.

    Raises:
        RunError: there is no such run.
    """
    experiment, params, _ = _trained(run)
    save_adapter(experiment.model, params, out)


def _trained(run: Path) -> tuple[Experiment, Params, int]:
    with RunStore.read(run) as store:
        experiment = build(make_config(store.manifest["config"]))
        return experiment, experiment.global_params(store.state()), store.last_round or 0

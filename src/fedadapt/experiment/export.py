"""Takes the trained network out of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from fedadapt.adapters import merge, save_adapter
from fedadapt.backbones.weights import save_weights
from fedadapt.errors import RunError
from fedadapt.experiment.build import Experiment
from fedadapt.experiment.run import rebuild
from fedadapt.params import Params
from fedadapt.runs.store import RunStore


def export_merged(run: Path, out: Path) -> None:
    """Writes the global model of a run as a plain network that computes the same without adapters.

    Its tensors have the backbone's own names; class names and pixel moments are in the metadata.

    Raises:
        AttachError: the adapter cannot be merged.
        RunError: there is no such run, its backbone is not here, or `out` cannot be written.
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
    merged = merge(experiment.model, params)
    with _writing(out):
        save_weights(merged, out, metadata, torch.float32)


def export_adapter(run: Path, out: Path) -> None:
    """Writes the global adapter, norms and head of a run as an adapter file.

    Raises:
        RunError: there is no such run, its backbone is not here, or `out` cannot be written.
    """
    experiment, params, _ = _trained(run)
    with _writing(out):
        save_adapter(experiment.model, params, out)


def _trained(run: Path) -> tuple[Experiment, Params, int]:
    with RunStore.read(run) as store:
        experiment = rebuild(store)
        return experiment, experiment.global_params(store.state()), store.last_round or 0


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Makes one line of whatever keeps `out` from being written; nothing is left beside it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            out.with_name(out.name + ".part").unlink()
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write {out} ({reason}); name a file in a folder with room that you may write to"
        ) from error

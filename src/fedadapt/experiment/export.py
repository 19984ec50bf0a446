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
from fedadapt.federation.serve import predicting
from fedadapt.params import Params
from fedadapt.runs.store import RunStore


def export_merged(run: Path, out: Path, client: int | None = None) -> None:
    """Writes the model of a run as a plain network that computes the same without adapters.

    Its tensors have the backbone's own names; class names and pixel moments are in the metadata.

    Args:
        run: the run's directory.
        out: the file.
        client: whose own model; None for the global one.

    Raises:
        AttachError: the adapter cannot be merged.
        RunError: there is no such run or no such model, its backbone is not here, or `out` cannot be written.
    """
    experiment, params, last = _trained(run, client)
    metadata = {
        "backbone": experiment.backbone.name,
        "mean": experiment.mean,
        "std": experiment.std,
        "class_names": experiment.dataset.class_names,
        "run": experiment.config.name,
        "round": last,
        **({} if client is None else {"client": client}),
    }
    merged = merge(experiment.model, params)
    with _writing(out):
        save_weights(merged, out, metadata, torch.float32)


def export_adapter(run: Path, out: Path, client: int | None = None) -> None:
    """Writes the adapter, norms and head of a run as an adapter file; arguments as for `export_merged`.

    Raises:
        RunError: there is no such run or no such model, its backbone is not here, or `out` cannot be written.
    """
    experiment, params, _ = _trained(run, client)
    with _writing(out):
        save_adapter(experiment.model, params, out)


def _trained(run: Path, client: int | None) -> tuple[Experiment, Params, int]:
    """What a run was made of, the tensors of its global model or of a client's own, and its last round."""
    with RunStore.read(run) as store:
        experiment = rebuild(store)
        shared, last = experiment.global_params(store.state()), store.last_round or 0
        kept = experiment.plan.kept()
        if client is None:
            if kept:
                groups = sorted({experiment.model.groups[name].value for name in kept})
                raise RunError(
                    f"clients of run {run} keep {' and '.join(groups)}, so what they share is nobody's model; "
                    "name the client whose model is wanted with --client"
                )
            return experiment, shared, last
        if not (kept or experiment.algorithm.local.personal):
            raise RunError(f"clients of run {run} have no models of their own; leave --client out")
        clients = experiment.config.data.num_clients
        memory = store.memory(client) if 0 <= client < clients else None
        if memory is None:
            why = "never took part" if 0 <= client < clients else f"is not from 0 to {clients - 1}"
            raise RunError(f"client {client} of run {run} {why}, so it has no model; name another")
        return experiment, predicting(experiment.algorithm, shared, memory), last


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

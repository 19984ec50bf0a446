"""A simulation's clients in another process: what of an experiment travels there, and how it is made again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from numpy.typing import NDArray

from fedadapt.data.dataset import Dataset, Split
from fedadapt.engines.engine import Blueprint
from fedadapt.errors import RunError
from fedadapt.experiment.build import Experiment, build
from fedadapt.experiment.config import RunConfig, make_config
from fedadapt.experiment.party_data import Clients, share_out
from fedadapt.federation.serve import Party

Columns = Mapping[str, NDArray[Any]]


def draw_blueprint(experiment: Experiment) -> Blueprint:
    """What other processes make the clients of an experiment from.

    The model is made again from the configuration; the training split goes along, so that nobody else has to have
    the data, or read them from the same path. Who holds what of it follows from the configuration again.
    """
    dataset = experiment.dataset
    columns = {
        field.name: column.contiguous().numpy()
        for field in fields(Split)
        if (column := getattr(dataset.train, field.name)) is not None
    }
    document = {
        "config": experiment.config.model_dump(mode="json"),
        "data": dataset.name,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
        "held": experiment.clients.held.digest.hex(),
    }
    return Blueprint(make_party, json.dumps(document), columns)


def make_party(document: str, columns: Columns, device: str) -> Party:
    """The clients again, with an empty memory.

    Args:
        document: of a blueprint.
        columns: likewise; they are not copied, and may be read-only.
        device: where to compute, whatever the configuration says.

    Raises:
        RunError: clients would hold other samples than there.
        FedadaptError: the model cannot be made here.
    """
    said = json.loads(document)
    with warnings.catch_warnings():
        # Torch has no read-only tensors and says so; nobody writes into a data set.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        train = Split(**{name: torch.from_numpy(column) for name, column in columns.items()})
    # Nothing is measured here, so there is no test set to bring.
    dataset = Dataset(
        said["data"],
        train,
        train,
        tuple(said["class_names"]),
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
    )

    def load(config: RunConfig) -> tuple[Dataset, Split, Clients]:
        return dataset, train, share_out(config, train)

    config = make_config(said["config"])
    here = config.train.model_copy(update={"device": device})
    experiment = build(config.model_copy(update={"train": here}), load)
    held = experiment.clients.held.digest.hex()
    if held != said["held"]:
        raise RunError(
            f"what clients hold comes to {held[:12]} here and to {said['held'][:12]} where the run was begun; "
            "use the same versions of Python, numpy and torch"
        )
    return experiment.party({})

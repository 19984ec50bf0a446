"""A simulation's clients in another process: what of an experiment travels there, and how it is made again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedadapt.data.dataset import Dataset, Split
from fedadapt.engines import Blueprint
from fedadapt.experiment.build import Clients, Experiment, build
from fedadapt.experiment.config import RunConfig, make_config
from fedadapt.federation.serve import Party

Columns = Mapping[str, NDArray[Any]]


def draw_blueprint(experiment: Experiment) -> Blueprint:
    """What other processes make the clients of an experiment from.

    The model is made again from the configuration; the training images go along, so that nobody else has to have
    the data, or read them from the same path.
    """
    dataset, clients = experiment.dataset, experiment.clients.train
    columns = {
        "images": dataset.train.images.contiguous().numpy(),
        "labels": dataset.train.labels.numpy(),
        "places": torch.cat(clients).numpy(),
        "sizes": np.array([len(own) for own in clients]),
    }
    document = {
        "config": experiment.config.model_dump(mode="json"),
        "data": dataset.name,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
    }
    return Blueprint(make_party, json.dumps(document), columns)


def make_party(document: str, columns: Columns, device: str) -> Party:
    """The clients again, with an empty memory.

    Args:
        document: of a blueprint.
        columns: likewise; they are not copied, and may be read-only.
        device: where to compute, whatever the configuration says.

    Raises:
        FedadaptError: the model cannot be made here.
    """
    said = json.loads(document)
    with warnings.catch_warnings():
        # Torch has no read-only tensors and says so; nobody writes into a data set.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        held = {name: torch.from_numpy(column) for name, column in columns.items()}
    train = Split(held["images"], held["labels"])
    # Nothing is measured here, so there is no test set to bring.
    dataset = Dataset(
        said["data"],
        train,
        train,
        tuple(said["class_names"]),
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
    )
    clients = Clients(list(held["places"].split(held["sizes"].tolist())), [])

    def load(config: RunConfig) -> tuple[Dataset, Split, Clients]:
        del config
        return dataset, train, clients

    config = make_config(said["config"])
    here = config.train.model_copy(update={"device": device})
    return build(config.model_copy(update={"train": here}), load).party({})

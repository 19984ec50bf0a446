"""The data of a party: everybody's where a federation is simulated, nobody's at a server, its own at a site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.holdings import NOBODY, Holdings
from fedadapt.data.holdout import split_off
from fedadapt.errors import ConfigError, DataError, PartitionError
from fedadapt.experiment.config import RunConfig
from fedadapt.seeds import Seeds


@dataclass(frozen=True)
class Clients:
    """Who holds what.

    Args:
        train: places in the train split, by client.
        test: likewise, held out by each client for itself.
        held: both together.
    """

    train: Holdings = NOBODY
    test: Holdings = NOBODY
    held: Holdings = NOBODY


LoadData = Callable[[RunConfig], tuple[Dataset, Split, Clients]]
"""Where the data of a party come from, such as `build_data`."""


def build_data(config: RunConfig) -> tuple[Dataset, Split, Clients]:
    """The data set, the split that is measured on, and who holds what; nobody anything, of samples that are elsewhere.

    Raises:
        ConfigError: a name or option is wrong.
        DataError: the data cannot be read, or does not go round.
    """
    dataset, measured_on = load_data(config)
    clients = share_out(config, dataset.train) if len(dataset.train) else Clients()
    return dataset, measured_on, clients


def server_data(config: RunConfig) -> tuple[Dataset, Split, Clients]:
    """What the server of a real federation has: the test set, the classes and the shape of images; nobody's samples.

    Raises:
        ConfigError: a name or option is wrong.
        DataError: the data cannot be read.
    """
    dataset, measured_on = load_data(config)
    return dataset, measured_on, Clients()


def need_samples(clients: Clients, config: RunConfig) -> None:
    """Makes sure that the clients' samples are here.

    Raises:
        ConfigError: they are elsewhere.
    """
    if not len(clients.train):
        raise ConfigError(
            f"data.source is {config.data.source.name!r}, which holds no samples; name one that does, or start a federation "
            "between sites that do with: fedadapt serve"
        )


def load_data(config: RunConfig) -> tuple[Dataset, Split]:
    """The data set, cut down as `config` says, and the split that is measured on.

    Raises:
        ConfigError: a name or option is wrong.
        DataError: the data cannot be read.
    """
    seeds, data = Seeds(config.seed), config.data
    dataset: Dataset = data.source.create("source")
    measured_on, train = dataset.test, dataset.train
    if not len(train):
        if data.validation_fraction:
            raise ConfigError(
                f"data.validation_fraction is {data.validation_fraction}, but source {data.source.name!r} holds no samples; set it "
                "to 0: sites measure on samples of their own"
            )
        return dataset, measured_on
    if data.validation_fraction:
        train, measured_on = split_off(train, data.validation_fraction, seeds, "validation")
    if data.limit is not None and data.limit < len(train):
        _, train = split_off(train, data.limit / len(train), seeds, "limit")
    limit = config.evaluate.limit
    if limit is not None and limit < len(measured_on):
        _, measured_on = split_off(measured_on, limit / len(measured_on), seeds, "measured")
    return replace(dataset, train=train), measured_on


def share_out(config: RunConfig, train: Split) -> Clients:
    """Who holds what of `train`.

    Raises:
        ConfigError: a name or option is wrong.
        PartitionError: the data do not go round.
    """
    seeds, data = Seeds(config.seed), config.data
    partition = data.partition.create("partition")
    try:
        held: Holdings = partition(train, data.num_clients, seeds)
        return Clients(*held.divide(train.labels, data.local_test_fraction, seeds), held)
    except DataError as error:
        raise PartitionError(str(error)) from error

"""Driving flwr-datasets: what it is shown, and what is done when it fails."""

from __future__ import annotations

import os

import datasets
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner, Partitioner

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.base import drive
from fedadapt.errors import DataError
from fedadapt.seeds import Seeds


def _split(count: int) -> Split:
    return Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count) // 10)


class _TwiceTheSame(Partitioner):
    """A partitioner that gives every client the first half."""

    num_partitions = 2

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        return self.dataset.select(range(5))


def test_samples_are_shown_in_random_order():
    """Contiguous pieces of a set sorted by class are not the clients' shares."""
    clients = drive(lambda: IidPartitioner(num_partitions=2), _split(20), 2, Seeds(0))
    assert all(0 < int((indices < 10).sum()) < 10 for indices in clients)


def test_lost_and_repeated_samples_are_an_error():
    """A partitioner that loses samples is not believed."""
    with pytest.raises(DataError, match=r"^dealing 10 samples out to 2 clients lost or repeated some; "):
        drive(_TwiceTheSame, _split(10), 2, Seeds(0))


def test_what_the_partitioner_refuses_is_one_line():
    """An error of flwr-datasets becomes one of ours, with its reason."""
    with pytest.raises(
        DataError, match=r"^cannot deal 10 samples out to 0 clients: The number of partitions must"
    ):
        drive(lambda: IidPartitioner(num_partitions=0), _split(10), 0, Seeds(0))


@pytest.mark.parametrize(("given", "expected"), [(None, "0"), ("1", "1")])
def test_telemetry_is_off_unless_the_user_turned_it_on(monkeypatch, given, expected):
    """When flwr-datasets is first needed its telemetry is off already; a user's own setting is kept."""
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    if given is not None:
        monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", given)
    seen = []

    def make() -> Partitioner:
        seen.append(os.environ["FLWR_TELEMETRY_ENABLED"])
        return IidPartitioner(num_partitions=2)

    drive(make, _split(10), 2, Seeds(0))
    assert seen == [expected]

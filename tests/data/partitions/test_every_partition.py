"""Laws that every partition keeps, whatever its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedadapt.data.dataset import Split
from fedadapt.errors import DataError
from fedadapt.registry import create, names
from fedadapt.seeds import Seeds

DEALT = [
    ("iid", {}),
    ("dirichlet", {"alpha": 0.3}),
    ("dirichlet", {"alpha": 0.3, "balanced": True}),
    ("dirichlet", {"alpha": 100.0}),
    ("domains", {}),
    ("domains_dirichlet", {"alpha": 0.3}),
    ("log_normal", {"sigma": 2.0}),
    ("natural_id", {}),
    ("pathological", {"classes": 2}),
    ("power_law", {"exponent": 1.5}),
    ("shards", {"shards": 2}),
]
VIRTUAL = [
    ("virtual", {"size": 4}),
    ("virtual", {"size": 3, "alpha": 0.1, "sigma": 1.0}),
]
"""Whose clients draw for themselves, and overlap."""
PARTITIONS = DEALT + VIRTUAL
NUM_DOMAINS, NUM_IDS = 3, 12
MAY_GIVE_UP = {"dirichlet", "domains_dirichlet", "pathological"}
"""A draw may leave a client without samples eleven times in a row, or a class without as many samples as takers."""


def make_split(count: int, seed: int = 0) -> Split:
    """Random labels of five classes, in three domains and of twelve people in turn."""
    labels = torch.randint(5, (count,), generator=torch.Generator().manual_seed(seed))
    images, turns = torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count)
    return Split(images, labels, turns % NUM_DOMAINS, turns % NUM_IDS)


def test_every_partition_is_here():
    """A partition that is registered is put to these tests."""
    assert {name for name, _ in PARTITIONS} == set(names("partition"))


@pytest.mark.parametrize(("name", "options"), DEALT)
@settings(max_examples=30)
@given(count=st.integers(3, 60), each=st.integers(1, 4), seed=st.integers(0, 2**63 - 1))
def test_clients_share_all_samples_and_no_sample_is_shared(name, options, count, each, seed):
    """Clients' indices ascend, and together are every sample once; nobody is left without."""
    assume(count >= NUM_DOMAINS * each * 2)
    try:
        clients = create("partition", name, options)(make_split(count), NUM_DOMAINS * each, Seeds(seed))
    except DataError:
        assert name in MAY_GIVE_UP
        assume(condition=False)
    assert len(clients) == NUM_DOMAINS * each
    assert sorted(torch.cat(list(clients)).tolist()) == list(range(count))
    for indices in clients:
        assert len(indices) >= 1
        assert indices.dtype == torch.int64
        assert indices.tolist() == sorted(indices.tolist())


@pytest.mark.parametrize(("name", "options"), VIRTUAL)
@settings(max_examples=30)
@given(
    count=st.integers(4, 60),
    clients=st.lists(st.integers(0, 10**9 - 1), max_size=5),
    seed=st.integers(0, 2**63 - 1),
)
def test_virtual_clients_hold_what_their_number_says(name, options, count, clients, seed):
    """Of a thousand million clients any few hold samples that ascend, whoever was asked before, each once."""
    split = make_split(count)
    held, other = (create("partition", name, options)(split, 10**9, Seeds(seed)) for _ in range(2))
    for client in clients:
        indices = held[client].tolist()
        assert indices == sorted(set(indices))
        assert set(indices) <= set(range(count))
        assert 1 <= len(indices) == held.size(client) <= held.largest
    assert [held[client].tolist() for client in clients] == [
        other[client].tolist() for client in reversed(clients)
    ][::-1]


@pytest.mark.parametrize(("name", "options"), PARTITIONS)
def test_clients_are_there_by_number_and_no_others(name, options):
    """Sizes agree with what is held; numbers out of range are errors; the digest tells another seed's holdings apart."""
    held, other = (create("partition", name, options)(make_split(200), 6, Seeds(seed)) for seed in (1, 2))
    assert [held.size(client) for client in range(6)] == [len(own) for own in held]
    assert held.largest >= max(map(len, held))
    for client in (-1, 6):
        with pytest.raises(IndexError, match=f"^client {client} is not from 0 to 5$"):
            held[client]
    assert (
        held.digest == create("partition", name, options)(make_split(200), 6, Seeds(1)).digest != other.digest
    )


@pytest.mark.parametrize(("name", "options"), PARTITIONS)
def test_the_seed_decides(name, options):
    """The same seed gives the same partition, another seed another one."""
    partition, split = create("partition", name, options), make_split(200)
    first, again, other = (partition(split, 6, Seeds(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("name", "options"), PARTITIONS)
def test_global_random_states_are_left_alone(name, options):
    """Neither numpy's nor torch's global generator is used or seeded."""

    # Python's own cannot be looked at here: the checker of shapes draws from it.
    def states() -> tuple[bytes, bytes]:
        return np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002

    before = states()
    create("partition", name, options)(make_split(60), 6, Seeds(0))
    assert states() == before


@pytest.mark.parametrize(("name", "options"), DEALT)
def test_local_tests_follow_each_client(name, options):
    """What a client holds out has each of its classes in the share it has of the client, to within one sample."""
    split = make_split(300)
    holdings = create("partition", name, options)(split, 6, Seeds(3))
    for own, rest, held in zip(holdings, *holdings.divide(split.labels, 0.25, Seeds(3)), strict=True):
        assert sorted([*rest.tolist(), *held.tolist()]) == own.tolist()
        assert len(held) == (min(max(round(0.25 * len(own)), 1), len(own) - 1) if len(own) > 1 else 0)
        counts, kept = (torch.bincount(split.labels[part], minlength=5) for part in (own, held))
        assert ((kept - counts * len(held) / max(len(own), 1)).abs() < 1).all()


@pytest.mark.parametrize(("name", "options"), DEALT)
@pytest.mark.parametrize("num_clients", [0, 6])
def test_more_clients_than_samples_are_refused(name, options, num_clients):
    """So are none; the message says how many are possible."""
    with pytest.raises(
        DataError,
        match=f"^cannot deal 5 samples out to {num_clients} clients with at least 1 each; 1 to 5 clients are possible$",
    ):
        create("partition", name, options)(make_split(5), num_clients, Seeds(0))

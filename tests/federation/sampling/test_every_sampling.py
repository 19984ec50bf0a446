"""Laws that every way of sampling keeps, and the numbers of each."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.virtual import virtual
from fedadapt.errors import ConfigError
from fedadapt.federation.sampling import Pool
from fedadapt.federation.sampling.base import MAX_LOOKS
from fedadapt.registry import create, names
from fedadapt.seeds import Seeds

SAMPLINGS = [
    ("uniform", {}),
    ("by_size", {}),
    ("available", {"least": 0.2, "most": 0.9}),
    ("diurnal", {"zones": 1.0}),
]
SPLIT = Split(torch.zeros(500, 1, 1, 1, dtype=torch.uint8), torch.arange(500) % 5)


def make_pool(num_clients: int) -> Pool:
    """Clients of very different sizes."""
    return Pool(num_clients, virtual(size=5, sigma=1.0)(SPLIT, num_clients, Seeds(0)))


def sample(name, options, num_clients, count, round, seed):
    """A cohort."""
    return create("sampling", name, options).choose(make_pool(num_clients), count, round, Seeds(seed))


def test_every_sampling_is_here():
    """A way of sampling that is registered is put to these tests."""
    assert {name for name, _ in SAMPLINGS} == set(names("sampling"))


@pytest.mark.parametrize(("name", "options"), SAMPLINGS)
@settings(max_examples=30)
@given(
    clients=st.integers(1, 10**9), size=st.integers(1, 30), round=st.integers(1, 99), seed=st.integers(0, 99)
)
def test_a_cohort_is_a_sorted_set_of_clients(name, options, clients, size, round, seed):
    """At most as many registered clients as asked for, each once, and the same ones if the round is played again."""
    cohort = sample(name, options, clients, size, round, seed)
    assert cohort == sorted(set(cohort))
    assert all(0 <= client < clients for client in cohort)
    assert len(cohort) <= min(size, clients)
    if name in ("uniform", "by_size"):
        assert len(cohort) == min(size, clients)
    assert cohort == sample(name, options, clients, size, round, seed)


@pytest.mark.parametrize(("name", "options"), SAMPLINGS)
def test_rounds_and_seeds_have_different_cohorts(name, options):
    """Another round or root seed asks others."""
    cohorts = {
        tuple(sample(name, options, 10**6, 20, round, seed)) for round in range(1, 6) for seed in range(4)
    }
    assert len(cohorts) == 20


@pytest.mark.parametrize(("name", "options"), SAMPLINGS)
def test_a_billion_registered_clients_cost_no_memory(name, options):
    """A cohort of 100 is drawn in less than a megabyte, whoever is registered."""
    pool, sampling = make_pool(10**9), create("sampling", name, options)
    tracemalloc.start()
    try:
        assert len(sampling.choose(pool, 100, 1, Seeds(0))) == 100
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def _counts(sampling, pool: Pool, count: int, rounds: int) -> list[int]:
    """How often each client was asked."""
    seen: Counter[int] = Counter()
    for round in range(1, rounds + 1):
        seen.update(sampling.choose(pool, count, round, Seeds(1)))
    return [seen[client] for client in range(pool.num_clients)]


def test_uniformly_every_client_has_its_turn_equally_often():
    """Over 3,000 rounds of 3 in 10, each client is asked 900 times, give or take five standard deviations."""
    counts = _counts(create("sampling", "uniform"), Pool(10), 3, 3000)
    assert all(abs(count - 900) < 5 * (3000 * 0.3 * 0.7) ** 0.5 for count in counts)


@pytest.mark.parametrize("listed", [True, False])
def test_by_size_the_shares_are_those_of_the_samples(monkeypatch, listed):
    """One at a time from sizes 1, 2 and 5: shares of 1/8, 2/8 and 5/8, from a list of sizes or by rejection."""
    monkeypatch.setattr("fedadapt.federation.sampling.by_size.MAX_LISTED", 3 if listed else 2)
    sizes = (1, 2, 5)
    held = Holdings.drawn(3, lambda client: torch.arange(sizes[client]), lambda client: sizes[client], 5, "")
    counts = _counts(create("sampling", "by_size"), Pool(3, held), 1, 4000)
    for count, size in zip(counts, sizes, strict=True):
        assert abs(count - 500 * size) < 5 * math.sqrt(4000 * size / 8 * (1 - size / 8))


def test_by_size_of_dealt_clients_reads_their_sizes():
    """One client of 97 samples among four: two others of three are left out whenever it is not."""
    held = Holdings.dealt([torch.arange(97), torch.tensor([97]), torch.tensor([98]), torch.tensor([99])])
    counts = _counts(create("sampling", "by_size"), Pool(4, held), 2, 300)
    assert counts[0] > 280
    assert sum(counts) == 600


def test_available_clients_come_by_their_rate():
    """With room for all, client k comes in a share of rounds that is 0.2 + 0.7 u_k."""
    counts = _counts(create("sampling", "available", {"least": 0.2, "most": 0.9}), Pool(6), 6, 2000)
    for client, count in enumerate(counts):
        rate = 0.2 + 0.7 * Seeds(1).uniform("availability", client=client)
        assert abs(count - 2000 * rate) < 5 * math.sqrt(2000 * rate * (1 - rate))


def test_the_day_goes_up_and_down():
    """In one time zone with a day of four rounds, a half is there at rounds 2 and 4, all at round 1 and none at round 3."""
    sampling = create("sampling", "diurnal", {"mean": 0.5, "swing": 0.5, "period": 4.0, "zones": 0.0})
    there = [len(sampling.choose(Pool(1000), 1000, round, Seeds(0))) for round in (1, 2, 3, 4)]
    assert there[0] == 1000
    assert there[2] == 0
    assert all(abs(count - 500) < 5 * math.sqrt(250) for count in (there[1], there[3]))


def test_a_server_does_not_look_for_ever():
    """If nobody is there, it asks nobody after a hundred looks for each it wants."""
    looks = []

    def uniform(self, purpose, *, round=0, client=-1):
        looks.append(client)
        return 0.999

    sampling = create("sampling", "available", {"least": 0.0, "most": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Seeds, "uniform", uniform)
        assert sampling.choose(Pool(10**6), 3, 1, Seeds(0)) == []
    assert len(set(looks)) == 3 * MAX_LOOKS


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("available", {"least": 0.9, "most": 0.2}, "least=0.9 above most=0.2; exchange them"),
        ("available", {"most": 1.5}, "key 'most' is 1.5: "),
        ("diurnal", {"mean": 0.4, "swing": 0.5}, "mean=0.4 and swing=0.5; mean - swing and mean"),
        ("diurnal", {"period": 0}, "key 'period' is 0: "),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, message):
    """Probabilities are from 0 to 1, whatever the hour."""
    with pytest.raises(ConfigError, match=message):
        create("sampling", name, options)

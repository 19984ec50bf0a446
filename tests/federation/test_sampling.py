"""Cohorts are seeded, sorted, without duplicates, and cost nothing for clients that are not in them."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from fedadapt.federation.sampling import sample_cohort
from fedadapt.seeds import Seeds


@given(
    clients=st.integers(1, 10**9), size=st.integers(1, 50), round=st.integers(1, 99), seed=st.integers(0, 99)
)
def test_a_cohort_is_a_sorted_set_of_clients(clients, size, round, seed):
    """As many different registered clients as asked for, or all of them; the same round has the same ones."""
    cohort = sample_cohort(clients, size, round, Seeds(seed))
    assert cohort == sorted(set(cohort))
    assert len(cohort) == min(size, clients)
    assert 0 <= cohort[0] <= cohort[-1] < clients
    assert cohort == sample_cohort(clients, size, round, Seeds(seed))


def test_rounds_and_seeds_have_different_cohorts():
    """Another round or root seed asks others."""
    cohorts = {
        tuple(sample_cohort(10**6, 20, round, Seeds(seed))) for round in range(1, 11) for seed in range(5)
    }
    assert len(cohorts) == 50


def test_every_client_has_its_turn_equally_often():
    """Over 3,000 rounds of 3 in 10, each client is asked 900 times, give or take five standard deviations."""
    counts = [0] * 10
    for round in range(1, 3001):
        for client in sample_cohort(10, 3, round, Seeds(1)):
            counts[client] += 1
    assert all(abs(count - 900) < 5 * (3000 * 0.3 * 0.7) ** 0.5 for count in counts)


def test_a_billion_registered_clients_cost_no_memory():
    """A cohort of 1,000 is drawn in less than a megabyte, whoever is registered."""
    tracemalloc.start()
    try:
        sample_cohort(10**9, 1000, 1, Seeds(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20

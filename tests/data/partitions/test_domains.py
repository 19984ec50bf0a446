"""Natural clients."""

from __future__ import annotations

import pytest
import torch

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.domains import domains
from fedadapt.data.partitions.domains_dirichlet import domains_dirichlet
from fedadapt.data.skew import jensen_shannon, label_counts
from fedadapt.errors import DataError
from fedadapt.seeds import Seeds


def _split(places: list[int] | None, count: int = 7) -> Split:
    column = None if places is None else torch.tensor(places)
    return Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count).long(), column)


def test_one_client_a_domain():
    """With as many clients as domains, each holds one, in order; unused numbers make no client."""
    clients = domains()(_split([0, 4, 0, 4, 0, 2, 2]), 3, Seeds(0))
    assert [indices.tolist() for indices in clients] == [[0, 2, 4], [5, 6], [1, 3]]


def test_several_clients_a_domain():
    """Two clients for each of two domains share its samples, as equally as can be."""
    clients = domains()(_split([0, 0, 0, 0, 0, 1, 1]), 4, Seeds(0))
    assert [len(indices) for indices in clients] == [3, 2, 1, 1]
    assert sorted(torch.cat(list(clients[:2])).tolist()) == [0, 1, 2, 3, 4]


def test_without_domains_it_is_an_error():
    """A data set without domains names the alternatives."""
    with pytest.raises(
        DataError, match=r"but the data set has no domains; use a source with domains, or partition"
    ):
        domains()(_split(None), 2, Seeds(0))


def test_clients_that_are_no_multiple_are_refused():
    """Three clients cannot stand for two domains."""
    with pytest.raises(
        DataError, match=r"2 domains out to 3 clients; the number of clients must be 2 or a multiple"
    ):
        domains()(_split([0, 1, 0, 1, 0, 1, 0]), 3, Seeds(0))


def test_a_domain_with_too_few_samples_is_refused():
    """A domain of one sample cannot be shared by two."""
    with pytest.raises(DataError, match=r"a domain of 1 samples out to 2 clients; use at most 2 clients$"):
        domains()(_split([0, 0, 0, 0, 0, 0, 1]), 4, Seeds(0))


def test_classes_within_a_domain_follow_their_own_draw():
    """Two domains, two clients each: clients hold their domain only, and are skewed, differently in each domain."""
    labels, places = torch.arange(400) % 10, torch.arange(400) // 200
    split = Split(torch.zeros(400, 1, 1, 1, dtype=torch.uint8), labels, places)
    clients = domains_dirichlet(alpha=0.3)(split, 4, Seeds(0))
    assert [set(places[own].tolist()) for own in clients] == [{0}, {0}, {1}, {1}]
    counts = label_counts(labels, clients, 10)
    assert (counts[0] + counts[1]).tolist() == (counts[2] + counts[3]).tolist() == [20] * 10
    assert float(jensen_shannon(counts).min()) > 0.02
    assert counts[0].tolist() != counts[2].tolist()


def test_one_client_a_domain_is_the_same_whatever_the_classes():
    """With as many clients as domains the mixed partition is that of the domains."""
    split = _split([0, 4, 0, 4, 0, 2, 2])
    mixed, plain = domains_dirichlet()(split, 3, Seeds(0)), domains()(split, 3, Seeds(0))
    assert [own.tolist() for own in mixed] == [own.tolist() for own in plain]

"""A cohort is cut by who holds how much, and by nothing else."""

from __future__ import annotations

import pytest
from contracts.cases import SIZES, tiny_model, tiny_party

from fedadapt.engines.chunks import choose_chunk, choose_lanes, cut
from fedadapt.engines.local import LocalEngine
from fedadapt.federation.messages import Request


def clients_of(chunks):
    """The client numbers of each chunk."""
    return [[request.client for request in chunk] for chunk in chunks]


def requests(clients):
    """Requests without content."""
    return [Request(1, client, b"") for client in clients]


def test_clients_of_like_size_are_together():
    """By hand, sizes 1, 3, 8, 5, 9, 2 of clients 0 to 5: in pairs 0 and 5, 1 and 3, 2 and 4, in whatever order asked."""
    party = tiny_party(tiny_model(), sizes=SIZES[:6])
    for order in ([0, 1, 2, 3, 4, 5], [4, 2, 0, 5, 3, 1]):
        assert clients_of(cut(requests(order), party, 2)) == [[0, 5], [1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("size", "processes", "expected"), [(None, 1, [16]), (None, 3, [6, 6, 4]), (5, 3, [5, 5, 5, 1])]
)
def test_every_process_gets_a_chunk_unless_told_otherwise(size, processes, expected):
    """Sixteen clients for three processes are six each, where memory allows; a size that is given is kept."""
    party = tiny_party(tiny_model())
    assert choose_chunk(party) > 16
    assert [len(chunk) for chunk in cut(requests(range(16)), party, size, processes)] == expected


def test_the_largest_map_of_a_chunk_fits_the_cache():
    """2 MiB over 4 bytes x 10 images x the values of the map, rounded down; a step too large for it is one client's."""
    party = tiny_party(tiny_model(), batch_size=10)
    largest, together = party.model.map_values(party.split.images.shape[1:])
    assert largest <= together
    assert choose_chunk(party) == 2 * 2**20 // (4 * 10 * largest)
    huge = tiny_party(tiny_model(), batch_size=10**6)
    assert choose_chunk(huge) == 1
    assert [len(chunk) for chunk in cut(requests(range(3)), huge, None)] == [1, 1, 1]


def test_chunks_side_by_side_fit_the_memory_together():
    """By hand: 4 GiB over the bytes of a chunk; one that is larger is alone, and there are no more lanes than threads."""
    party = tiny_party(tiny_model(), batch_size=10)
    _, together = party.model.map_values(party.split.images.shape[1:])
    client = 4 * (20 * together + 5 * sum(tensor.numel() for tensor in party.model.start.values()))
    assert choose_lanes(party, 10**6, 100) == 4 * 2**30 // (100 * client)
    assert choose_lanes(party, 3, 100) == 3
    assert choose_lanes(tiny_party(tiny_model(), batch_size=10**7), 16, None) == 1


def test_a_model_of_one_client_is_served_alone():
    """Full fine-tuning has no client axis, so every chunk is one client; nobody asked, no chunk."""
    party = tiny_party(tiny_model("full"))
    assert [len(chunk) for chunk in cut(requests([0, 3, 5]), party, 8)] == [1, 1, 1]
    assert cut([], party, 8) == []
    assert LocalEngine(party).exchange([]) == []

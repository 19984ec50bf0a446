"""Who holds what, as a function of the client's number."""

from __future__ import annotations

import pytest
import torch

from fedadapt.data.holdings import NOBODY, Holdings
from fedadapt.errors import ConfigError, DataError
from fedadapt.seeds import Seeds

LABELS = torch.arange(40) % 2


def test_dealt_pieces_come_back():
    """Three clients of 2, 1 and 3 samples, one by one and as a stretch."""
    parts = [torch.tensor([3, 9]), torch.tensor([0]), torch.tensor([1, 2, 7])]
    held = Holdings.dealt(parts)
    assert [own.tolist() for own in held] == [part.tolist() for part in parts]
    assert [own.tolist() for own in held[1:]] == [[0], [1, 2, 7]]
    assert (held.size(2), held.largest, held.sizes.tolist()) == (3, 3, [2, 1, 3])


def test_a_client_with_nothing_is_refused():
    """The message names it."""
    with pytest.raises(DataError, match=r"^client 1 would hold no samples; use fewer clients or another"):
        Holdings.dealt([torch.tensor([0]), torch.tensor([], dtype=torch.int64)])


def test_the_digest_tells_pieces_apart():
    """The same samples cut at another place are other holdings."""
    one, other = (Holdings.dealt(torch.arange(4).split(sizes)) for sizes in ([1, 3], [3, 1]))
    assert one.digest != other.digest


def test_a_rule_is_asked_once_for_a_client():
    """Nothing is drawn for who is not asked, and nothing twice."""
    asked = []

    def of(client):
        asked.append(client)
        return torch.arange(client + 1)

    held = Holdings.drawn(10**9, of, lambda client: client + 1, 5, "a rule")
    assert (len(held), len(held[3]), len(held[3]), held.size(4)) == (10**9, 4, 4, 5)
    assert asked == [3]


def test_divided_clients_depend_on_their_number_alone():
    """The samples held out of client 2 are the same whether client 0 was asked or not, and another seed's are not."""
    held = Holdings.dealt(torch.arange(40).split(10))
    one, other = (held.divide(LABELS, 0.3, Seeds(seed)) for seed in (0, 1))
    alone = held.divide(LABELS, 0.3, Seeds(0))[1][2].tolist()
    assert [own.tolist() for own in one[1]][2] == alone != other[1][2].tolist()
    assert len({part.digest for part in (held, *one, *other)}) == 5


def test_nothing_held_out_leaves_all():
    """At fraction 0 clients train on all they hold, and have no test samples."""
    held = Holdings.dealt(torch.arange(40).split(10))
    train, test = held.divide(LABELS, 0.0, Seeds(0))
    assert train is held
    assert [len(own) for own in test] == [0] * 4


def test_clients_that_may_overlap_hold_nothing_out():
    """What one would measure itself on, others train on; the message says what to use."""
    held = Holdings.drawn(4, lambda client: torch.arange(10), lambda client: 10, 10, "a rule")
    with pytest.raises(
        ConfigError, match=r"local_test_fraction is 0.3, but clients .* overlap .* the test set"
    ):
        held.divide(LABELS, 0.3, Seeds(0))
    assert held.divide(LABELS, 0.0, Seeds(0))[0] is held


def test_nobody_holds_anything():
    """Where no client's samples are, there is none to ask for."""
    assert len(NOBODY) == 0
    with pytest.raises(IndexError):
        NOBODY[0]

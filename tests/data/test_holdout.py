"""What is held out is stratified, seeded and never everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedadapt.data.dataset import Split
from fedadapt.data.holdout import hold_out, split_off
from fedadapt.errors import ConfigError, DataError
from fedadapt.seeds import Seeds


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _split(labels: list[int], domains: list[int] | None = None) -> Split:
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return Split(images, torch.tensor(labels), None if domains is None else torch.tensor(domains))


@given(
    labels=st.lists(st.integers(0, 4), max_size=40),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**31),
)
def test_both_parts_are_all_and_each_class_gets_its_share(labels, fraction, seed):
    """The parts are disjoint and complete, and a class is never off its exact share by a whole sample."""
    labels = torch.tensor(labels, dtype=torch.int64)
    rest, held = hold_out(torch.arange(len(labels)), labels, fraction, _generator(seed))
    assert torch.cat([rest, held]).sort().values.tolist() == list(range(len(labels)))
    assert rest.tolist() == sorted(rest.tolist())
    assert held.tolist() == sorted(held.tolist())
    for label in labels.unique():
        exact = len(held) * int((labels == label).sum()) / len(labels)
        assert abs(int((labels[held] == label).sum()) - exact) < 1


@given(total=st.integers(2, 50), fraction=st.floats(0.001, 0.999))
def test_the_number_held_is_the_rounded_share(total, fraction):
    """round(fraction * n) samples are held, but at least one and not all."""
    _, held = hold_out(torch.arange(total), torch.zeros(total).long(), fraction, _generator())
    assert len(held) == min(max(round(fraction * total), 1), total - 1)


def test_shares_by_hand():
    """A quarter of 6, 3 and 3 samples is 1.5, 0.75, 0.75 of three: 1, 1, 1 by largest remainder."""
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 3)
    _, held = hold_out(torch.arange(12), labels, 0.25, _generator())
    assert torch.bincount(labels[held]).tolist() == [1, 1, 1]


def test_indices_point_into_the_whole_split():
    """A client's indices are divided by the labels they point at, and come back as they were."""
    labels = torch.tensor([0, 1] * 10)
    client = torch.tensor([1, 2, 5, 8, 11, 14])
    rest, held = hold_out(client, labels, 1 / 3, _generator())
    assert torch.cat([rest, held]).sort().values.tolist() == client.tolist()
    assert labels[held].sort().values.tolist() == [0, 1]


@pytest.mark.parametrize("total", [0, 1])
def test_a_single_sample_is_kept_for_training(total):
    """A client with one sample, or none, holds nothing out."""
    rest, held = hold_out(torch.arange(total), torch.zeros(total).long(), 0.9, _generator())
    assert (len(rest), len(held)) == (total, 0)


def test_fraction_zero_holds_nothing():
    """A fraction of 0 keeps every sample for training."""
    rest, held = hold_out(torch.arange(5), torch.zeros(5).long(), 0.0, _generator())
    assert (rest.tolist(), held.tolist()) == ([0, 1, 2, 3, 4], [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_out_of_range_is_refused(fraction):
    """Fractions are from 0 to below 1."""
    with pytest.raises(
        ConfigError, match=f"^the fraction to hold out is {fraction}; it must be from 0 to below 1$"
    ):
        hold_out(torch.arange(5), torch.zeros(5).long(), fraction, _generator())


def test_the_draw_depends_on_seed_and_purpose():
    """The same seed and purpose hold the same images; another of either holds others."""
    split = _split([0, 1] * 40)
    held = [
        split_off(split, 0.2, Seeds(seed), purpose)[1].images.flatten().tolist()
        for seed, purpose in ((1, "test"), (1, "test"), (2, "test"), (1, "validation"))
    ]
    assert held[0] == held[1]
    assert held[0] != held[2]
    assert held[0] != held[3]


def test_split_off_divides_every_column():
    """Labels and domains go with their images."""
    rest, held = split_off(_split([0, 1] * 4, [0, 0, 1, 1] * 2), 0.5, Seeds(0), "test")
    for part in (rest, held):
        assert torch.equal(part.labels, part.images.flatten().long() % 2)
        assert torch.equal(part.domains, part.images.flatten().long() // 2 % 2)


def test_split_off_is_stratified_by_domain_and_class():
    """Every pair of a domain and a class gives its share."""
    labels, domains = [0, 1, 0, 1] * 5, [0, 0, 1, 1] * 5
    _, held = split_off(_split(labels, domains), 0.2, Seeds(0), "test")
    assert sorted(zip(held.labels.tolist(), held.domains.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


@pytest.mark.parametrize(("labels", "fraction"), [([], 0.5), ([0], 0.5), ([0, 1], 0.0)])
def test_nothing_to_split_off_is_an_error(labels, fraction):
    """A split that cannot be divided in two says so in one line."""
    split = Split(
        torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64)
    )
    with pytest.raises(
        DataError, match=f"^cannot set aside {fraction} of {len(labels)} images for validation; "
    ):
        split_off(split, fraction, Seeds(0), "validation")


def test_split_off_nothing_of_no_images_with_domains_is_the_same_error():
    """An empty split with domains is refused as one without."""
    empty = torch.zeros(0).long()
    with pytest.raises(DataError, match="of 0 images"):
        split_off(Split(torch.zeros(0, 1, 1, 1, dtype=torch.uint8), empty, empty), 0.5, Seeds(0), "test")

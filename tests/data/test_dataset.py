"""A data set is refused if it does not fit together, and its moments are exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import config

from fedadapt.data.dataset import Dataset, Split, channel_moments
from fedadapt.errors import DataError


def _split(count: int = 3, label: int = 0) -> Split:
    return Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.full((count,), label))


def test_split_takes_images_labels_and_domains_in_the_order_asked_for():
    """`take` applies the same indices to all three columns."""
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    split = Split(images, torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6, 7, 8])).take(torch.tensor([2, 0]))
    assert len(split) == 2
    assert split.images.flatten().tolist() == [2, 0]
    assert split.labels.tolist() == [2, 0]
    assert split.domains.tolist() == [7, 5]


def test_split_without_domains_stays_without():
    """`take` of a split without domains has none."""
    assert _split().take(torch.tensor([0])).domains is None


@pytest.fixture
def unchecked():
    """Shapes as users run fedadapt: nothing checks annotations."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("column", ["labels", "domains"])
def test_split_of_unequal_lengths_is_refused(column):
    """A column that is shorter than the images is an error that names it and both lengths."""
    columns = {
        "labels": torch.zeros(3).long(),
        "domains": torch.zeros(3).long(),
        column: torch.zeros(2).long(),
    }
    with pytest.raises(DataError, match=f"^a split has 3 images but 2 {column}$"):
        Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), **columns)


@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_an_empty_split_is_refused(part):
    """Each split needs an image."""
    splits = {"train": _split(), "test": _split(), part: _split(0)}
    with pytest.raises(
        DataError, match=f"^data set 'x' has an empty {part} split; it needs at least one image$"
    ):
        Dataset("x", class_names=("a",), **splits)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_images_of_another_shape_are_refused(part):
    """What is measured on has the shape of what is trained on."""
    other = Split(torch.zeros(3, 1, 2, 4, dtype=torch.uint8), torch.zeros(3).long())
    splits = {"train": _split(), "test": _split(), part: other}
    with pytest.raises(
        DataError, match=f"^data set 'x' has {part} images of 1x2x4, but train images of 1x2x2"
    ):
        Dataset("x", class_names=("a",), **splits)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_refused(label):
    """Labels are from 0 to one below the number of class names."""
    with pytest.raises(
        DataError, match=f"^data set 'x' has test labels from {label} to {label}, but 2 classes"
    ):
        Dataset("x", _split(), _split(label=label), ("a", "b"))


def test_moments_come_from_the_train_images_unless_given():
    """Mean and deviation are computed from the train split alone; given ones are kept."""
    bright = Split(torch.full((2, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(2).long())
    computed = Dataset("x", bright, _split(), ("a",))
    assert (computed.mean, computed.num_classes) == ((1.0,), 1)
    given_ones = Dataset("x", bright, _split(), ("a",), mean=(0.5,), std=(0.25,))
    assert (given_ones.mean, given_ones.std) == ((0.5,), (0.25,))


def test_moments_by_hand():
    """Half zeros and half 255 have mean 1/2 and deviation 1/2; a constant channel has deviation 1/255."""
    images = torch.zeros(2, 2, 1, 1, dtype=torch.uint8)
    images[1, 0] = 255
    mean, std = channel_moments(images)
    assert mean == (0.5, 0.0)
    assert std == (0.5, 1 / 255)


@given(st.lists(st.integers(0, 255), min_size=2, max_size=30))
def test_moments_equal_the_textbook_formula(values):
    """Counting values gives what the float mean and (population) deviation give."""
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
    mean, std = channel_moments(images)
    exact = torch.tensor(values, dtype=torch.float64) / 255
    assert mean[0] == pytest.approx(float(exact.mean()), abs=1e-12)
    assert std[0] == pytest.approx(max(float(exact.std(correction=0)), 1 / 255), abs=1e-9)

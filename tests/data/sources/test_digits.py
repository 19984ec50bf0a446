"""The embedded digits."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from fedadapt.errors import ConfigError
from fedadapt.registry import create


@pytest.fixture(scope="module")
def digits():
    """The set with its default options."""
    return create("source", "digits")


def test_counts(digits):
    """1,797 images of 10 classes: 1,438 to train on and 359 to test on, of 3 x 32 x 32 bytes."""
    assert digits.train.images.shape == (1438, 3, 32, 32)
    assert digits.test.images.shape == (359, 3, 32, 32)
    assert digits.class_names == tuple("0123456789")
    assert digits.name == "digits"


def test_each_class_gives_a_fifth(digits):
    """The split is stratified: no class is off its share by a whole image."""
    of_train, of_test = (torch.bincount(split.labels) for split in (digits.train, digits.test))
    assert ((of_test - (of_train + of_test) * 359 / 1797).abs() < 1).all()


def test_the_split_is_always_the_same(digits):
    """Loading again, or at another size, puts the same images into the test set."""
    again, larger = create("source", "digits"), create("source", "digits", {"size": 64})
    assert torch.equal(again.test.images, digits.test.images)
    assert larger.test.images.shape == (359, 3, 64, 64)
    assert torch.equal(larger.test.labels, digits.test.labels)


def test_at_the_original_size_pixels_are_the_original_levels():
    """At 8x8 nothing is enlarged: a level v of 16 becomes round(v * 255 / 16), in three equal channels."""
    small = create("source", "digits", {"size": 8})
    images = torch.cat([small.train.images, small.test.images])
    originals = torch.from_numpy(load_digits().images).float().mul(255 / 16).round().to(torch.uint8)
    assert sorted(map(bytes, images[:, 0].numpy())) == sorted(map(bytes, originals.numpy()))
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


def test_shrinking_is_refused():
    """There is nothing below 8x8 pixels."""
    with pytest.raises(ConfigError, match=r"^source 'digits': key 'size' is 7: "):
        create("source", "digits", {"size": 7})

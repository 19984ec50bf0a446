"""A server may know classes and shape of images, and hold none."""

from __future__ import annotations

import pytest

from fedadapt.errors import ConfigError
from fedadapt.registry import create

NAMES = ["cat", "dog"]


def test_it_has_classes_and_a_shape_and_no_sample():
    """Moments are what it is told, or unknown."""
    found = create("source", "elsewhere", {"class_names": NAMES, "size": 8, "channels": 1})
    assert (found.class_names, found.num_classes) == (("cat", "dog"), 2)
    assert found.train.images.shape == (0, 1, 8, 8)
    assert (len(found.test), found.mean, found.std) == (0, (), ())
    moments = {"channels": 1, "mean": [0.5], "std": [0.2]}
    told = create("source", "elsewhere", {"class_names": NAMES, "size": 8, **moments})
    assert (told.mean, told.std) == ((0.5,), (0.2,))


@pytest.mark.parametrize(
    "wrong", [{"class_names": ["cat"]}, {"size": 0}, {"mean": [2.0]}, {"std": [0.0]}, {"mean": [0.5]}]
)
def test_what_no_images_have_is_refused(wrong):
    """By the name of the key."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        create("source", "elsewhere", {"class_names": NAMES, "size": 8} | wrong)

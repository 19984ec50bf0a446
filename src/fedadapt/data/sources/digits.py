"""The handwritten digits that come with scikit-learn: a real task without a download."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.holdout import split_off
from fedadapt.registry import register
from fedadapt.seeds import Seeds

_LEVELS = 16
_TEST_FRACTION = 0.2


@register("source", "digits")
def digits(*, size: Annotated[int, Field(ge=8, le=512)] = 32) -> Dataset:
    """1,797 handwritten digits of 10 classes, bundled with scikit-learn; needs no download.

    The originals have 8x8 pixels in 17 levels. They are enlarged bilinearly, scaled to 0..255 and given three
    equal channels. A fifth of each class is the test set; the split is always the same, whatever the run's
    seed, so that results of different seeds are measured on the same images.

    Args:
        size: pixels of a side.

    Source:
        E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository,
        1998 (its test part).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] * (255 / _LEVELS)
    large = functional.interpolate(small, size=(size, size), mode="bilinear")
    images = large.round().to(torch.uint8).repeat(1, 3, 1, 1)
    train, test = split_off(
        Split(images, torch.from_numpy(bunch.target).long()), _TEST_FRACTION, Seeds(0), "digits"
    )
    return Dataset("digits", train, test, tuple(str(name) for name in bunch.target_names))

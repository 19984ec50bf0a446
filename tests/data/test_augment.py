"""Flips and crops are the literal ones, and depend on nothing but the generator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedadapt.data.augment import Augment, Draws, normalise


def _images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=generator).to(torch.uint8)


def _literally(images: torch.Tensor, draws: Draws, pad: int) -> torch.Tensor:
    """One pixel at a time: pixel (y, x) of the crop is pixel (top + y - pad, left + x - pad), or black."""
    result = torch.zeros_like(images)
    count, _, height, width = images.shape
    for n in range(count):
        for y in range(height):
            for x in range(width):
                across = width - 1 - x if draws.mirror[n] else x
                row, column = int(draws.top[n]) + y - pad, int(draws.left[n]) + across - pad
                if 0 <= row < height and 0 <= column < width:
                    result[n, :, y, x] = images[n, :, row, column]
    return result


@given(
    count=st.integers(0, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    pad=st.integers(0, 3),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_crop_and_mirror_are_the_literal_ones(count, height, width, pad, flip, seed):
    """The gather equals a loop over pixels for every shape, padding and draw."""
    augment = Augment(pad=pad, flip=flip)
    images = _images(count, height, width, seed)
    draws = augment.draw(count, torch.Generator().manual_seed(seed))
    assert torch.equal(augment.apply(images, draws), _literally(images, draws, pad))


def test_draws_depend_on_the_generator_alone():
    """The same generator state gives the same draws, whatever was drawn globally before; another state differs."""
    augment = Augment()
    first = augment.draw(64, torch.Generator().manual_seed(1))
    torch.rand(5)
    again = augment.draw(64, torch.Generator().manual_seed(1))
    other = augment.draw(64, torch.Generator().manual_seed(2))
    for name in ("top", "left", "mirror"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_drawing_leaves_the_global_state_alone():
    """Augmentation takes nothing from torch's global generator."""
    before = torch.get_rng_state()
    augment = Augment()
    augment.apply(_images(8, 4, 4), augment.draw(8, torch.Generator().manual_seed(1)))
    assert torch.equal(before, torch.get_rng_state())


def test_draws_cover_their_range():
    """Crops start from 0 to twice the padding, and about half of the images are mirrored."""
    draws = Augment(pad=2).draw(2000, torch.Generator().manual_seed(0))
    assert draws.top.unique().tolist() == draws.left.unique().tolist() == [0, 1, 2, 3, 4]
    assert 900 < int(draws.mirror.sum()) < 1100


def test_without_flip_nothing_is_mirrored():
    """`flip=False` never mirrors."""
    assert not Augment(flip=False).draw(1000, torch.Generator().manual_seed(0)).mirror.any()


def test_without_padding_and_flip_images_stay_as_they_are():
    """An augmentation that does nothing returns its input."""
    augment = Augment(pad=0, flip=False)
    images = _images(3, 4, 4)
    assert augment.apply(images, augment.draw(3, torch.Generator().manual_seed(0))) is images


def test_taking_draws_first_equals_augmenting_first():
    """Augmenting some images with their draws gives those of the whole batch."""
    augment, images, chosen = Augment(pad=2), _images(6, 5, 5), torch.tensor([4, 1])
    draws = augment.draw(6, torch.Generator().manual_seed(3))
    assert torch.equal(
        augment.apply(images[chosen], draws.take(chosen)), augment.apply(images, draws)[chosen]
    )


def test_normalise_is_the_formula():
    """Each value is (x / 255 - mean) / std of its channel, in channels-last memory."""
    images, mean, std = _images(4, 5, 5), (0.1, 0.5, 0.9), (0.2, 0.3, 0.004)
    result = normalise(images, mean, std, torch.float32)
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(result[:, channel].double(), expected, rtol=1e-5, atol=1e-4)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_normalise_by_hand():
    """White with mean 1/2 and deviation 1/4 is 2, black is -2."""
    images = torch.tensor([255, 0], dtype=torch.uint8).view(2, 1, 1, 1)
    assert normalise(images, (0.5,), (0.25,), torch.float32).flatten().tolist() == pytest.approx([2.0, -2.0])


def test_normalise_casts_last():
    """The result has the type asked for."""
    assert normalise(_images(1, 2, 2), (0.5,) * 3, (0.5,) * 3, torch.bfloat16).dtype == torch.bfloat16

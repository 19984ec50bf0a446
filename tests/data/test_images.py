"""Pictures become squares of bytes, and what cannot is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedadapt.data import images as images_module
from fedadapt.data.dataset import Split
from fedadapt.data.images import fit, from_picture, gather, number_classes, reason
from fedadapt.errors import DataError


def test_fit_crops_the_centre():
    """A wide image of the right height loses its sides and nothing else."""
    images = torch.arange(10, dtype=torch.uint8).view(1, 1, 2, 5)
    assert fit(images, 2).flatten().tolist() == [1, 2, 6, 7]


def test_fit_averages_when_it_shrinks():
    """The triangle filter of a halved image weighs 1, 3, 3, 1, cut off and made to sum to one at the border."""
    row = torch.tensor([0, 70, 140, 210], dtype=torch.uint8)
    shrunk = fit(row.expand(1, 1, 4, 4), 2)
    left, right = (3 * 0 + 3 * 70 + 140) / 7, (70 + 3 * 140 + 3 * 210) / 7
    assert shrunk[0, 0].tolist() == [[round(left), round(right)]] * 2


@given(height=st.integers(1, 9), width=st.integers(1, 9), size=st.integers(1, 9), value=st.integers(0, 255))
def test_fit_keeps_a_flat_colour(height, width, size, value):
    """An image of one value stays of that value at every size."""
    fitted = fit(torch.full((2, 3, height, width), value, dtype=torch.uint8), size)
    assert fitted.shape == (2, 3, size, size)
    assert (fitted == value).all()


def test_fit_does_not_depend_on_how_many_are_resized_at_once(monkeypatch):
    """Images are resized one by one or all together to the same bytes."""
    images = torch.randint(256, (7, 3, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    together = fit(images, 4)
    monkeypatch.setattr(images_module, "_PIXELS_AT_ONCE", 72)
    assert torch.equal(fit(images, 4), together)


def test_grey_pictures_become_colour():
    """A picture of one channel has that channel three times."""
    pixels = from_picture(Image.new("L", (3, 2), 7), None, "x")
    assert pixels.shape == (3, 2, 3)
    assert (pixels == 7).all()


def test_pictures_are_fitted():
    """A size makes a square."""
    assert from_picture(Image.new("RGB", (5, 9)), 4, "x").shape == (3, 4, 4)


def test_pictures_are_turned_as_the_camera_was_held(tmp_path):
    """Every reader of pictures has the same pixels: those that a person sees."""
    picture, tag = Image.new("RGB", (2, 1)), Image.Exif()
    picture.putpixel((0, 0), (255, 0, 0))
    tag[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=tag)
    with Image.open(tmp_path / "turned.png") as opened:
        pixels = from_picture(opened, None, "x")
    assert pixels[0].tolist() == [[255], [0]]


def test_damaged_tags_do_not_cost_a_picture(tmp_path):
    """What else a camera wrote is nobody's business."""
    Image.new("RGB", (2, 1), (9, 9, 9)).save(tmp_path / "odd.png", exif=b"Exif\0\0no tags at all")
    with Image.open(tmp_path / "odd.png") as opened:
        assert (from_picture(opened, None, "x") == 9).all()


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_pictures_of_more_than_8_bits_are_refused(mode):
    """Deep pictures are not clipped silently."""
    with pytest.raises(DataError, match=f"^x has a picture of mode '{mode}'; 8 bits a channel are allowed"):
        from_picture(Image.new(mode, (2, 2)), None, "x")


def test_gather_keeps_order():
    """Images come out as they went in."""
    images = [torch.full((1, 2, 2), n, dtype=torch.uint8) for n in range(3)]
    assert torch.equal(gather(iter(images), 3, "x"), torch.stack(images))


def test_gather_refuses_two_sizes():
    """Images of two sizes name both and say what to set."""
    images = [torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(1, 3, 2, dtype=torch.uint8)]
    with pytest.raises(
        DataError, match=r"^x has images of 2x2 and of 3x2 pixels; all must be of one size, set size$"
    ):
        gather(images, 2, "x")


def test_gather_refuses_none():
    """No images are an error."""
    with pytest.raises(DataError, match=r"^x has no images; it needs at least one$"):
        gather([], 0, "x")


def _split(labels: list[int]) -> Split:
    return Split(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), torch.tensor(labels))


def test_classes_are_numbered_to_the_highest_label_of_any_split():
    """Three classes if a split has label 2, even if it is not the first."""
    assert number_classes((_split([0, 1]), _split([2]), None), "x") == ("0", "1", "2")


def test_labels_that_are_no_class_numbers_are_refused():
    """A label beyond the number of images does not make as many classes."""
    with pytest.raises(DataError, match=r"^x has a label 1000000000000 among 2 images; "):
        number_classes((_split([0, 10**12]),), "x")


def test_a_reason_is_one_line():
    """Only the first line of another library's message is shown, or the kind of an error without one."""
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(ValueError()) == "ValueError"

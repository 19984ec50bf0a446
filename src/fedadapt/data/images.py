"""From pictures of any kind to the resident uint8 tensors of a split."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedadapt.data.dataset import Split
from fedadapt.errors import DataError

Size = Annotated[int, Field(gt=0, le=4096)]
"""The side of a square image, in pixels."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a picture it cannot decode."""

_PIXELS_AT_ONCE = 2**24

_ORIENTATION = 0x0112
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of that tag."""


def fit(images: UInt8[Tensor, "N C H W"], size: int) -> UInt8[Tensor, "N C size size"]:
    """The centre square of each image, resized to `size` (bilinear, antialiased, rounded).

    Cropping first gives what resizing the shorter side and then cropping gives, but for the outermost
    pixels, and takes no memory for what a long, thin image would lose anyway.

    Args:
        images: all of one shape.
        size: pixels.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side]
    if side == size:
        return square
    fitted = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    # Floats of the whole set at once would take four times its memory.
    chunk = max(1, _PIXELS_AT_ONCE // max(side, size) ** 2)
    for start in range(0, len(square), chunk):
        part = square[start : start + chunk].float()
        part = functional.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        fitted[start : start + chunk] = part.round_().clamp_(0, 255).to(torch.uint8)
    return fitted


def from_picture(picture: Image.Image, size: int | None, source: str) -> UInt8[Tensor, "3 H W"]:
    """A Pillow picture as RGB bytes, upright, fitted to `size` if it is given.

    Args:
        picture: opened, not necessarily loaded.
        size: pixels of a side.
        source: for the message.

    Raises:
        DataError: the picture has more than 8 bits a channel, which a cast would silently clip.
    """
    if picture.mode[0] in "IF":
        raise DataError(
            f"{source} has a picture of mode {picture.mode!r}; 8 bits a channel are allowed, convert it to 8 bits"
        )
    pixels = torch.from_numpy(np.array(_upright(picture).convert("RGB"))).permute(2, 0, 1)
    return pixels if size is None else fit(pixels[None], size)[0]


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as the camera was held, where it says so; cameras write pixels as the sensor lies."""
    turn = None
    # A picture is none the worse for what is wrong with its other tags.
    with suppress(*UNREADABLE, TypeError):
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION))
    return picture if turn is None else picture.transpose(turn)


def gather(images: Iterable[UInt8[Tensor, "C H W"]], count: int, source: str) -> UInt8[Tensor, "N C H W"]:
    """`count` images as one tensor, written in place as they come, so that none is in memory twice.

    Args:
        images: exactly `count` of them.
        count: N.
        source: for the message.

    Raises:
        DataError: there is none, or two differ in shape.
    """
    if count == 0:
        raise DataError(f"{source} has no images; it needs at least one")
    batch = torch.empty(0, dtype=torch.uint8)
    for index, image in enumerate(images):
        if index == 0:
            batch = torch.empty((count, *image.shape), dtype=torch.uint8)
        elif image.shape != batch.shape[1:]:
            raise DataError(
                f"{source} has images of {_pixels(batch)} and of {_pixels(image)} pixels; "
                "all must be of one size, set size"
            )
        batch[index] = image
    return batch


def number_classes(splits: Sequence[Split | None], source: str) -> tuple[str, ...]:
    """Class names for labels without names: ``"0"`` up to the highest label.

    Raises:
        DataError: there would be more classes than images, so the labels are not class numbers.
    """
    present = [split for split in splits if split is not None and len(split)]
    classes = 1 + max((int(split.labels.max()) for split in present), default=0)
    images = sum(len(split) for split in present)
    if classes > images:
        raise DataError(
            f"{source} has a label {classes - 1} among {images} images; labels must number the classes from 0"
        )
    return tuple(str(number) for number in range(classes))


def reason(error: BaseException) -> str:
    """The first line of what another library says went wrong, or the kind of error if it says nothing."""
    return str(error).split("\n", 1)[0] or type(error).__name__


def _pixels(images: Tensor) -> str:
    return "x".join(str(side) for side in images.shape[-2:])

"""Image sets as plain arrays in one ``.npz`` file."""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.lib import format as npy
from pydantic import Field
from torch import Tensor

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.holdout import Fraction, split_off
from fedadapt.data.images import Size, fit, number_classes
from fedadapt.errors import DataError
from fedadapt.registry import register
from fedadapt.seeds import Seeds

_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    RuntimeError,
)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@register("source", "npz")
def npz(
    *,
    path: Path,
    labels: str | None = None,
    size: Size | None = None,
    channels: Literal[1, 3] = 3,
    limit: Annotated[int, Field(gt=0)] | None = None,
    test_fraction: Fraction = 0.2,
    seed: Annotated[int, Field(ge=0)] = 0,
    max_bytes: Annotated[int, Field(gt=0)] = 16 * 2**30,
) -> Dataset:
    """A ``.npz`` file with x_train, y_train, x_test, y_test and, if it has them, validation, names and domains.

    ===========================  =========================================================================
    array                        what it holds
    ===========================  =========================================================================
    x_train, x_test, x_val       uint8 ``[N, H, W]`` or ``[N, H, W, C]`` with C 1 or 3
    y_train, y_test, y_val       whole numbers from 0, ``[N]``
    domain_train, ...            whole numbers from 0, ``[N]``
    class_names                  text, one a class; without it classes are called by their number
    ===========================  =========================================================================

    Nothing is unpickled, and the sizes that the file declares are checked before memory is taken.

    Args:
        path: the file.
        labels: takes the labels from ``y_train_<labels>`` and so on, and the class names from
            ``<labels>_names`` or ``class_names_<labels>``.
        size: resizes to squares of this side, in pixels.
        channels: 3 repeats a single channel; 1 needs images with one channel.
        limit: keeps that many train images, drawn at random.
        test_fraction: what becomes the test set of a file that has none.
        seed: of both draws.
        max_bytes: of all arrays that are read.

    Raises:
        DataError: the file is missing or damaged, lacks train images, or holds arrays that do not fit.
    """
    suffix = f"_{labels}" if labels else ""
    name_keys = [f"{labels}_names", f"class_names{suffix}"] if labels else ["class_names"]
    parts = ("train", "test", "val")
    keys = [key for part in parts for key in (f"x_{part}", f"y_{part}{suffix}", f"domain_{part}")]
    arrays = _read(path.expanduser(), [*keys, *name_keys], max_bytes)

    def split(part: str) -> Split | None:
        if f"x_{part}" not in arrays:
            return None
        images = _images(arrays, f"x_{part}", path, channels)
        domain = f"domain_{part}"
        domains = _numbers(arrays, domain, len(images), path) if domain in arrays else None
        return Split(images, _numbers(arrays, f"y_{part}{suffix}", len(images), path), domains)

    train, test, validation = split("train"), split("test"), split("val")
    if train is None:
        raise DataError(
            f"{path} is not an image set with a train split: it has {_listed(arrays)}, but no 'x_train'"
        )
    named = next((arrays[key] for key in name_keys if key in arrays), None)
    class_names = (
        number_classes((train, test, validation), str(path)) if named is None else _text(named, path)
    )
    if test is None:
        train, test = split_off(train, test_fraction, Seeds(seed), "test")
    if limit is not None and limit < len(train):
        drawn = torch.randperm(len(train), generator=Seeds(seed).torch("limit"))[:limit]
        train = train.take(drawn.sort().values)
    if size is not None:
        train, test = _resized(train, size), _resized(test, size)
        validation = None if validation is None else _resized(validation, size)
    return Dataset(path.stem, train, test, class_names, validation)


def _read(path: Path, wanted: list[str], max_bytes: int) -> dict[str, np.ndarray]:
    """The wanted arrays that are there; if there is none, all names with empty arrays."""
    if not path.is_file():
        raise DataError(f"there is no file {path}; set path to a .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            if "x_train" not in there:
                return {key: np.empty(0) for key in there}
            keys = [key for key in wanted if key in there]
            declared = sum(_declared_bytes(archive, key) for key in keys)
            if declared > max_bytes:
                raise DataError(
                    f"{path} declares {declared} bytes of arrays, more than max_bytes={max_bytes}; "
                    "raise max_bytes if the file is to be trusted and memory allows"
                )
            return {key: _array(archive, key) for key in keys}
    except _DAMAGED as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise DataError(
            f"{path} is not a readable .npz file ({reason}); write it again with numpy.savez"
        ) from error


def _declared_bytes(archive: zipfile.ZipFile, key: str) -> int:
    with archive.open(f"{key}.npy") as stream:
        version = npy.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"array {key!r} has format version {version}")
        shape, _, dtype = _HEADERS[version](stream)
    return abs(math.prod(shape)) * dtype.itemsize


def _array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as stream:
        return npy.read_array(stream, allow_pickle=False)


def _images(arrays: dict[str, np.ndarray], key: str, path: Path, channels: int) -> UInt8[Tensor, "N C H W"]:
    array = arrays[key]
    if array.dtype != np.uint8:
        hint = "multiply by 255 if they are 0..1, round and cast" if array.dtype.kind == "f" else "cast them"
        raise DataError(f"{path}: {key!r} has type {array.dtype}; images must be uint8, {hint}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape:
        raise DataError(
            f"{path}: {key!r} has shape {list(arrays[key].shape)}; "
            "images must be [N, H, W] or [N, H, W, C] with C 1 or 3, and not empty"
        )
    if array.shape[3] > channels:
        raise DataError(f"{path}: {key!r} has 3 channels, but channels=1; set channels=3")
    # A view: images stay channels-last in memory, as convolutions on a CPU like them.
    images = torch.from_numpy(array).permute(0, 3, 1, 2)
    return images.repeat(1, channels // images.shape[1], 1, 1)


def _numbers(arrays: dict[str, np.ndarray], key: str, count: int, path: Path) -> Int64[Tensor, " N"]:
    if key not in arrays:
        raise DataError(f"{path} has images, but no {key!r}; it has {_listed(arrays)}")
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(
            f"{path}: {key!r} has type {array.dtype} and shape {list(array.shape)}; it must be whole numbers [N]"
        )
    if len(array) != count:
        raise DataError(
            f"{path}: {key!r} has {len(array)} entries for {count} images; it must have one an image"
        )
    if int(array.min()) < 0:
        raise DataError(f"{path}: {key!r} has a negative entry {int(array.min())}; it must count from 0")
    return torch.from_numpy(array.astype(np.int64))


def _text(array: np.ndarray, path: Path) -> tuple[str, ...]:
    if array.dtype.kind != "U" or array.ndim != 1:
        raise DataError(
            f"{path}: class names have type {array.dtype} and shape {list(array.shape)}; give text [D]"
        )
    return tuple(str(name) for name in array)


def _resized(split: Split, size: int) -> Split:
    return Split(fit(split.images, size), split.labels, split.domains)


def _listed(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(repr(key) for key in sorted(arrays)) or "no arrays"

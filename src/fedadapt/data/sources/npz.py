"""Image sets as plain arrays in one ``.npz`` file."""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.lib import format as npy
from pydantic import Field
from torch import Tensor

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.holdout import Fraction, split_off
from fedadapt.data.images import Size, fit, number_classes, reason
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
_Array = np.ndarray[Any, np.dtype[Any]]
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
    """A ``.npz`` file with x_train, y_train, x_test, y_test and, if it has them, validation, names, domains and ids.

    ===========================  =========================================================================
    array                        what it holds
    ===========================  =========================================================================
    x_train, x_test, x_val       uint8 ``[N, H, W]`` or ``[N, H, W, C]`` with C 1 or 3
    y_train, y_test, y_val       whole numbers from 0, ``[N]``
    domain_train, ...            whole numbers from 0, ``[N]``
    id_train, ...                whose an image is: whole numbers or text, ``[N]``
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
    keys = [
        key for part in parts for key in (f"x_{part}", f"y_{part}{suffix}", f"domain_{part}", f"id_{part}")
    ]
    path = path.expanduser()
    arrays = _read(path, [*keys, *name_keys], ["x_train", f"y_train{suffix}"], max_bytes)

    def split(part: str) -> Split:
        images = _images(arrays[f"x_{part}"], f"{path}: 'x_{part}'", channels)
        labels_key, domain_key, id_key = f"y_{part}{suffix}", f"domain_{part}", f"id_{part}"
        if labels_key not in arrays:
            raise DataError(f"{path} has 'x_{part}', but no {labels_key!r}; every image needs a label")
        numbers = _numbers(arrays[labels_key], f"{path}: {labels_key!r}", len(images))
        domains = ids = None
        if domain_key in arrays:
            domains = _numbers(arrays[domain_key], f"{path}: {domain_key!r}", len(images))
        if id_key in arrays:
            ids = _identities(arrays[id_key], f"{path}: {id_key!r}", len(images))
        return Split(images, numbers, domains, ids)

    train = split("train")
    test = split("test") if "x_test" in arrays else None
    validation = split("val") if "x_val" in arrays else None
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


def _read(path: Path, wanted: list[str], required: list[str], max_bytes: int) -> dict[str, _Array]:
    """The arrays of the wanted names, as far as they are there."""
    if not path.is_file():
        raise DataError(f"there is no file {path}; set path to a .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            for key in required:
                if key not in there:
                    raise DataError(
                        f"{path} is not an image set with a train split: it has no {key!r}; "
                        f"it has {_listed(there)}"
                    )
            keys = [key for key in wanted if key in there]
            declared = sum(_declared_bytes(archive, key) for key in keys)
            if declared > max_bytes:
                raise DataError(
                    f"{path} declares {declared} bytes of arrays, more than max_bytes={max_bytes}; "
                    "raise max_bytes if the file is to be trusted and memory allows"
                )
            return {key: _array(archive, key) for key in keys}
    except _DAMAGED as error:
        raise DataError(
            f"{path} is not a readable .npz file ({reason(error)}); write it again with numpy.savez"
        ) from error


def _declared_bytes(archive: zipfile.ZipFile, key: str) -> int:
    with archive.open(f"{key}.npy") as stream:
        version = npy.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"array {key!r} has format version {version}")
        shape, _, dtype = _HEADERS[version](stream)
    # Texts of no characters declare no bytes, and take some all the same.
    return abs(math.prod(shape)) * max(dtype.itemsize, 1)


def _array(archive: zipfile.ZipFile, key: str) -> _Array:
    with archive.open(f"{key}.npy") as stream:
        return npy.read_array(stream, allow_pickle=False)


def _images(array: _Array, where: str, channels: int) -> UInt8[Tensor, "N C H W"]:
    if array.dtype != np.uint8:
        hint = "multiply by 255 if they are 0..1, round and cast" if array.dtype.kind == "f" else "cast them"
        raise DataError(f"{where} has type {array.dtype}; images must be uint8, {hint}")
    stacked = array[..., None] if array.ndim == 3 else array
    if stacked.ndim != 4 or stacked.shape[3] not in (1, 3) or 0 in stacked.shape:
        raise DataError(
            f"{where} has shape {list(array.shape)}; "
            "images must be [N, H, W] or [N, H, W, C] with C 1 or 3, and not empty"
        )
    if stacked.shape[3] > channels:
        raise DataError(f"{where} has 3 channels, but channels=1; set channels=3")
    # A view: images stay channels-last in memory, as convolutions on a CPU like them.
    images = torch.from_numpy(stacked).permute(0, 3, 1, 2)
    return images if images.shape[1] == channels else images.repeat(1, channels, 1, 1)


def _numbers(array: _Array, where: str, count: int) -> Int64[Tensor, " N"]:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(
            f"{where} has type {array.dtype} and shape {list(array.shape)}; it must be whole numbers [N]"
        )
    if len(array) != count:
        raise DataError(f"{where} has {len(array)} entries for {count} images; it must have one an image")
    if int(array.min()) < 0:
        raise DataError(f"{where} has a negative entry {int(array.min())}; it must count from 0")
    return torch.from_numpy(array.astype(np.int64))


def _identities(array: _Array, where: str, count: int) -> Int64[Tensor, " N"]:
    """Numbers from 0 for whatever tells people or sites apart, in ascending order."""
    if array.dtype.kind not in "iuU" or array.shape != (count,):
        raise DataError(
            f"{where} has type {array.dtype} and shape {list(array.shape)}; "
            f"it must be whole numbers or text, one for each of {count} images"
        )
    return torch.from_numpy(np.unique(array, return_inverse=True)[1].astype(np.int64))


def _text(array: _Array, path: Path) -> tuple[str, ...]:
    if array.dtype.kind != "U" or array.ndim != 1:
        raise DataError(
            f"{path}: class names have type {array.dtype} and shape {list(array.shape)}; they must be text [D]"
        )
    return tuple(str(name) for name in array)


def _resized(split: Split, size: int) -> Split:
    return replace(split, images=fit(split.images, size))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:10]) or "no arrays"
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"

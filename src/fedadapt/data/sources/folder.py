"""Image files in one folder a class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.holdout import Fraction, split_off
from fedadapt.data.images import UNREADABLE, Size, from_picture, gather, reason
from fedadapt.errors import ConfigError, DataError
from fedadapt.registry import register
from fedadapt.seeds import Seeds

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class _File:
    """One file, and what its place in the tree says about it."""

    path: Path
    label: str
    place: str | None = None


@register("source", "folder")
def folder(
    *,
    path: Path,
    size: Size,
    domains: bool = False,
    ids: bool = False,
    train_split: str = "train",
    test_split: str = "test",
    test_fraction: Fraction = 0.2,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Dataset:
    """Image files as ``path/train/<class>/*`` and ``path/test/<class>/*``, or as ``path/<place>/<class>/*``.

    Folders are the classes, in alphabetical order; so are files within. Each image becomes RGB, and its
    centre square is resized. Hidden files, and files that have no suffix of an image, are passed over.

    Args:
        path: the folder.
        size: pixels of a side.
        domains: the folders below `path` are domains; every one of them is split.
        ids: the folders below `path` are writers, patients or sites; they are split together.
        train_split: the folder of train images; without `domains` and `ids`.
        test_split: the folder of test images; likewise. If it is not there, or ``""``, train images are split.
        test_fraction: the test share of such a split, of each class (and domain).
        seed: of such a split.

    Raises:
        ConfigError: folders cannot be domains and ids at once.
        DataError: a folder is missing or empty, a file is no image, or the test set has a class of its own.
    """
    path = path.expanduser().resolve()
    if domains and ids:
        raise ConfigError("source 'folder' has one level above the classes; set either domains or ids")
    if domains or ids:
        files = [file for place in _folders(path) for file in _files(place, place.name)]
    else:
        files = _files(path / train_split)
    class_names = tuple(sorted({file.label for file in files}))
    train = _load(files, class_names, size)
    if ids:
        train = replace(train, domains=None, ids=train.domains)
    if domains or ids or not test_split or not (path / test_split).is_dir():
        return Dataset(path.name, *split_off(train, test_fraction, Seeds(seed), "test"), class_names)
    return Dataset(path.name, train, _load(_files(path / test_split), class_names, size), class_names)


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; a folder of folders with images must be there")
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not folders:
        raise DataError(f"{path} has no folders; it must have one for each class or domain")
    return folders


def _files(path: Path, place: str | None = None) -> list[_File]:
    found = []
    for label in _folders(path):
        images = sorted(
            child
            for child in label.iterdir()
            if child.suffix.lower() in _SUFFIXES and not child.name.startswith(".")
        )
        if not images:
            raise DataError(
                f"{label} has no images ({', '.join(sorted(_SUFFIXES))}); add some or remove the folder"
            )
        found += [_File(image, label.name, place) for image in images]
    return found


def _load(files: list[_File], class_names: tuple[str, ...], size: int) -> Split:
    unknown = {file.label for file in files} - set(class_names)
    if unknown:
        raise DataError(
            f"{files[0].path.parent.parent} has a class {min(unknown)!r} that the train images lack; "
            f"allowed: {', '.join(class_names)}"
        )
    images = gather(
        (_picture(file.path, size) for file in files), len(files), str(files[0].path.parent.parent)
    )
    labels = torch.tensor([class_names.index(file.label) for file in files])
    places = [file.place for file in files if file.place is not None]
    numbers = {place: number for number, place in enumerate(sorted(set(places)))}
    return Split(images, labels, torch.tensor([numbers[place] for place in places]) if places else None)


def _picture(path: Path, size: int) -> UInt8[Tensor, "3 size size"]:
    try:
        with Image.open(path) as picture:
            return from_picture(picture, size, str(path))
    except UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read as an image ({reason(error)}); replace or remove it"
        ) from error

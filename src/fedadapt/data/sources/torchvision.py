"""The data sets that torchvision can read or download."""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.images import UNREADABLE, Size, from_picture, gather, number_classes, reason
from fedadapt.errors import DataError, UnknownName
from fedadapt.registry import register


@register("source", "torchvision")
def torchvision(
    *,
    dataset: str,
    root: Path,
    download: bool = False,
    size: Size | None = None,
    train_split: str = "train",
    test_split: str = "test",
    options: dict[str, Any] | None = None,
) -> Dataset:
    """A classification set of ``torchvision.datasets``, such as CIFAR10, with its own train and test images.

    torchvision reads the set's own file format. For CIFAR that is a pickle; torchvision compares the MD5 sum
    of the files with that of the published ones first, and refuses others.

    Args:
        dataset: the class in ``torchvision.datasets``; its constructor must take ``train`` or ``split``.
        root: the folder that torchvision keeps the set in.
        download: whether torchvision may fetch what is missing.
        size: pixels of a side, for images that are not of one size already.
        train_split: what ``split`` is for train images, if the class has it in place of ``train``.
        test_split: likewise for test images.
        options: further arguments of the class, such as ``{split = "letters"}`` for EMNIST.

    Raises:
        UnknownName: torchvision has no such set.
        DataError: the files are missing or corrupt, or the set is not made for classification.
    """
    from torchvision import datasets

    known = [entry for entry in datasets.__all__ if isinstance(getattr(datasets, entry), type)]
    if dataset not in known:
        close = difflib.get_close_matches(dataset, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; see torchvision.datasets for the known ones"
        raise UnknownName(f"torchvision has no data set {dataset!r}{hint}")
    kind = getattr(datasets, dataset)
    accepted = _parameters(kind)
    if "train" in accepted:
        choices: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in accepted:
        choices = [{"split": train_split}, {"split": test_split}]
    else:
        raise DataError(f"torchvision's {dataset} has no train and test images of its own; use another set")
    common = {"root": str(root.expanduser()), **(options or {})}
    if "download" in accepted:
        common["download"] = download
    loaded = []
    for choice in choices:
        try:
            loaded.append(kind(**common, **choice))
        except (OSError, RuntimeError, ValueError, TypeError, ImportError) as error:
            raise DataError(
                f"torchvision cannot open {dataset} in {root} with {choice} ({reason(error)}); "
                "check root, or set download=true to fetch it"
            ) from error
    train, test = (_split(one, size, dataset) for one in loaded)
    names = getattr(loaded[0], "classes", None) or number_classes((train, test), dataset)
    return Dataset(dataset, train, test, tuple(str(entry) for entry in names))


def _parameters(kind: type[Any]) -> set[str]:
    """What a class accepts, itself or (through ``**kwargs``, as EMNIST does) by its bases."""
    return {name for base in kind.__mro__[:-1] for name in inspect.signature(base).parameters}


def _split(dataset: Any, size: int | None, name: str) -> Split:
    labels: list[int] = []

    def pictures() -> Iterator[UInt8[Tensor, "3 H W"]]:
        for index in range(len(dataset)):
            try:
                picture, label = dataset[index]
                # Before the label is looked at: loading its pixels closes the picture's file.
                pixels = from_picture(picture, size, name)
            except UNREADABLE as error:
                raise DataError(
                    f"{name}: image {index} cannot be read ({reason(error)}); fetch the set again"
                ) from error
            try:
                labels.append(operator.index(label))
            except TypeError as error:
                raise DataError(
                    f"{name} has the label {label!r}; only sets with class numbers can be used"
                ) from error
            yield pixels

    images = gather(pictures(), len(dataset), name)
    return Split(images, torch.tensor(labels))

"""Data sets of the Hugging Face hub, and local files that its ``datasets`` library reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.holdout import Fraction, split_off
from fedadapt.data.images import UNREADABLE, Size, from_picture, gather, number_classes, reason
from fedadapt.errors import DataError
from fedadapt.registry import register
from fedadapt.seeds import Seeds

if TYPE_CHECKING:
    import datasets


@register("source", "huggingface")
def huggingface(
    *,
    path: str,
    subset: str | None = None,
    image: str = "image",
    label: str = "label",
    domain: str | None = None,
    id: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    test_fraction: Fraction = 0.2,
    seed: Annotated[int, Field(ge=0)] = 0,
    size: Size | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Dataset:
    """A data set of the Hugging Face hub by name, or a local folder or Parquet file.

    No code that comes with a data set is ever run.

    Args:
        path: a name on the hub, such as ``"ylecun/mnist"``, or a local folder or file.
        subset: which configuration, of a set that has several.
        image: the column of images.
        label: the column of classes: class labels, or whole numbers from 0.
        domain: the column that says where an image comes from, such as a camera, if there is one.
        id: the column that says whose an image is, such as a writer or patient, if there is one.
        train_split: the split to train on.
        test_split: the split to test on; ``""`` splits `test_fraction` off the train images.
        test_fraction: the test share of such a split.
        seed: of such a split.
        size: pixels of a side, for images that are not of one size already.
        revision: a branch, tag or commit on the hub; name a commit to get the same images for ever.
        cache_dir: where the library keeps what it has downloaded and converted.

    Raises:
        DataError: the set, a split or a column is missing, or an image cannot be read.
    """
    tables = [
        _load(path, split, name=subset, revision=revision, cache_dir=cache_dir)
        for split in (train_split, test_split)
        if split
    ]
    class_names = _check_columns(tables[0].features, path, image, label, {"domain": domain, "id": id})
    domains, ids = _numbered(tables, domain, path), _numbered(tables, id, path)
    splits = []
    for index, table in enumerate(tables):
        images = gather(_pictures(table, image, size, path), len(table), path)
        labels = _column(table, label)
        if None in labels:
            raise DataError(f"data set {path!r} has an image without {label!r}; every image needs a class")
        splits.append(Split(images, torch.tensor(labels), domains[index], ids[index]))
    train, test = splits if test_split else split_off(splits[0], test_fraction, Seeds(seed), "test")
    return Dataset(path, train, test, class_names or number_classes(splits, path))


def _load(path: str, split: str, **options: Any) -> datasets.Dataset:
    import datasets

    local = Path(path).expanduser()
    if local.is_file():
        if local.suffix != ".parquet":
            raise DataError(f"cannot read {path}; a local file must be a .parquet file, or name its folder")
        # Always as "train": under the name of the split that is asked for, one file would be its own test set.
        builder, files = "parquet", {"train": str(local)}
    else:
        builder, files = str(local) if local.is_dir() else path, None
    try:
        return datasets.load_dataset(builder, data_files=files, split=split, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load split {split!r} of data set {path!r} ({reason(error)}); check path, subset and splits"
        ) from error


def _check_columns(
    features: datasets.Features, path: str, image: str, label: str, further: Mapping[str, str | None]
) -> tuple[str, ...]:
    """The names of the classes, or none if they are only numbered."""
    import datasets

    for option, column in {"image": image, "label": label, **further}.items():
        if column is not None and column not in features:
            raise DataError(
                f"data set {path!r} has no column {column!r}; set {option} to one of: {', '.join(features)}"
            )
    if not isinstance(features[image], datasets.Image):
        raise DataError(f"column {image!r} of data set {path!r} holds {features[image]}; it must hold images")
    for column in further.values():
        if column is not None and not isinstance(features[column], datasets.Value | datasets.ClassLabel):
            raise DataError(
                f"column {column!r} of data set {path!r} holds {features[column]}; it must hold one text or number an image"
            )
    kind = features[label]
    if isinstance(kind, datasets.ClassLabel):
        return tuple(kind.names)
    if not (isinstance(kind, datasets.Value) and kind.dtype.startswith(("int", "uint"))):
        raise DataError(
            f"column {label!r} of data set {path!r} holds {kind}; it must hold class labels or integers"
        )
    return ()


def _numbered(tables: Sequence[datasets.Dataset], column: str | None, path: str) -> list[Tensor | None]:
    """Numbers from 0 for the values of a column, the same in all tables; None where no column is named."""
    if column is None:
        return [None] * len(tables)
    values = [_column(table, column) for table in tables]
    if any(value is None for part in values for value in part):
        raise DataError(
            f"data set {path!r} has an image without {column!r}; every image needs one, or name no such column"
        )
    numbers = {value: number for number, value in enumerate(sorted({v for part in values for v in part}))}
    return [torch.tensor([numbers[value] for value in part]) for part in values]


def _column(table: datasets.Dataset, name: str) -> list[Any]:
    # Without the other columns: reading a row would decode its image.
    return table.select_columns([name])[:][name]


def _pictures(
    table: datasets.Dataset, image: str, size: int | None, path: str
) -> Iterator[UInt8[Tensor, "3 H W"]]:
    column = table.select_columns([image])
    for index in range(len(table)):
        try:
            picture = column[index][image]
        except UNREADABLE as error:
            raise DataError(f"data set {path!r}: image {index} cannot be read ({reason(error)})") from error
        if picture is None:
            raise DataError(f"data set {path!r} has no image in row {index}; every row needs one")
        yield from_picture(picture, size, f"data set {path!r}")

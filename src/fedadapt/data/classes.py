"""The labels of a party's data, in the numbering that its federation uses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fedadapt.data.dataset import Dataset, Split
from fedadapt.errors import DataError


def align_classes(dataset: Dataset, class_names: Sequence[str], called: Mapping[str, str]) -> Dataset:
    """The same images with the federation's class numbers.

    A party may lack classes that others have; it may have none that the federation does not know. Where two classes of
    the federation have one name, only a party with the very same list can tell them apart.

    Args:
        dataset: of the party, with its own class names.
        class_names: of the federation, in the order of their numbers.
        called: the federation's name for a class, by the party's name; classes that are called alike need none.

    Raises:
        DataError: a class of the party, or a name in `called`, is not known, or could be one of several.
    """
    unknown = sorted(set(called) - set(dataset.class_names))
    if unknown:
        raise DataError(
            f"classes maps {unknown[0]!r}, but {dataset.name} has the classes {', '.join(dataset.class_names)}"
        )
    if not called and dataset.class_names == tuple(class_names):
        return dataset
    numbers = {name: number for number, name in enumerate(class_names)}
    wanted = [called.get(name, name) for name in dataset.class_names]
    for own, name in zip(dataset.class_names, wanted, strict=True):
        if name not in numbers:
            near = difflib.get_close_matches(name, class_names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise DataError(
                f"class {own!r} of {dataset.name} is {name!r} to the federation, which has no such class{hint} "
                f"It has {', '.join(class_names)}; map it under [classes] in the site file"
            )
        if list(class_names).count(name) > 1:
            raise DataError(
                f"class {own!r} of {dataset.name} is {name!r} to the federation, which has several classes of that name; "
                "name them apart in the federation's data"
            )
    table = torch.tensor([numbers[name] for name in wanted])

    def renumber(split: Split) -> Split:
        return replace(split, labels=table[split.labels])

    return Dataset(
        dataset.name,
        renumber(dataset.train),
        renumber(dataset.test),
        tuple(class_names),
        None if dataset.validation is None else renumber(dataset.validation),
        dataset.mean,
        dataset.std,
    )

"""A party's labels in the numbering of its federation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from contracts.cases import tiny_split

from fedadapt.data.classes import align_classes
from fedadapt.data.dataset import Dataset
from fedadapt.errors import DataError

SPLIT = tiny_split(30)
OWN = Dataset("own", SPLIT, SPLIT, tuple("abcde"))


def numbers(dataset):
    """Its labels."""
    return dataset.train.labels.tolist()


def test_names_say_which_number():
    """Names decide, not places; two classes of a party may be one of the federation's."""
    turned = align_classes(OWN, tuple("edcba"), {})
    assert numbers(turned) == [4 - label for label in numbers(OWN)]
    joined = align_classes(OWN, ("x", "c", "d", "e"), {"a": "x", "b": "x"})
    assert numbers(joined) == [max(label - 1, 0) for label in numbers(OWN)]


def test_the_same_list_is_the_same_numbering():
    """Also where two classes have one name."""
    twins = replace(OWN, class_names=("cat", "cat", "dog", "owl", "cow"))
    assert numbers(align_classes(twins, list(twins.class_names), {})) == numbers(OWN)


def test_a_name_that_could_be_two_classes_is_refused():
    """Another list cannot say which of them is meant."""
    with pytest.raises(DataError, match="several classes of that name"):
        align_classes(OWN, ("a", "b", "b", "c", "d", "e"), {})

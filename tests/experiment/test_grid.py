"""A slice of the grid of techniques, trainable sets and distributions; the whole is ``python benchmarks/grid.py``."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.grid import DISTRIBUTIONS, SETS, TECHNIQUES, as_row, cells, finish, table, write_slice

from fedadapt.registry import create, names

SMALL = (
    "backbone={name='resnet20', width=0.25}",
    "rounds=1",
    "data.num_clients=4",
    "train.lr=0.01",
    "evaluate.every=1",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Digits at 12 pixels in four styles: 96 to train on and 40 to test."""
    file = tmp_path_factory.mktemp("grid") / "grid.npz"
    write_slice(create("source", "digits", {"size": 12}), file, 96, 40)
    return file


def test_the_whole_grid_is_a_hundred_runs():
    """Ten techniques, two trainable sets, five distributions, each with a name of its own."""
    grid = cells()
    assert (len(TECHNIQUES), len(SETS), len(DISTRIBUTIONS)) == (10, 2, 5)
    assert len({cell.name for cell in grid}) == len(grid) == 100
    assert set(TECHNIQUES) <= set(names("algorithm"))
    assert set(SETS) <= set(names("adapter"))


def test_a_slice_has_every_class_and_domain(data):
    """As many images as asked for, of each style about a quarter, of ten classes."""
    arrays = np.load(data)
    assert (len(arrays["x_train"]), len(arrays["x_test"])) == (96, 40)
    assert np.bincount(arrays["domain_train"]).tolist() == pytest.approx([24] * 4, abs=5)
    assert len(set(arrays["y_train"])) == 10


def test_a_slice_of_the_grid_is_one_table(tmp_path, data):
    """Every cell runs to its end and says how accurate the global model and the clients' own are; again costs nothing."""
    grid = cells(["scaffold", "ditto"], ["full", "parallel"], ["two-class shards", "domains"])
    summaries = [finish(cell, data, tmp_path, SMALL) for cell in grid]
    rows = [as_row(cell, summary) for cell, summary in zip(grid, summaries, strict=True)]
    assert all(row["rounds"] == 1 and row["bytes"] > 0 for row in rows)
    assert all(0 <= row[key] <= 1 for row in rows for key in ("accuracy", "personal_accuracy"))
    lines = table(rows).splitlines()
    assert lines[0] == "| technique | trained | two-class shards | domains |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| scaffold", "| ditto"] * 2
    assert all(line.count(" % (") == 2 for line in lines[2:])
    again = [as_row(cell, finish(cell, data, tmp_path, SMALL)) for cell in grid]
    assert again == rows

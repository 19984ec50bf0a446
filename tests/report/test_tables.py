"""The comparison's cells by hand, and how numbers are written."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedadapt.report.gather import summarise
from fedadapt.report.tables import (
    compare_columns,
    compare_table,
    format_accuracy,
    format_bytes,
    format_seconds,
    format_share,
    reference_run,
)


def cells(paths):
    """The comparison as texts by column and run."""
    return {column.title: column.cells for column in compare_columns([summarise(path) for path in paths])}


def printed(paths, width):
    """The terminal's table of so many columns as lines."""
    console = Console(file=io.StringIO(), width=width)
    console.print(compare_table([summarise(path) for path in paths]))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (100 * 1024, "100 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (int(1.5 * 1024**3), "1.50 GiB"),
        (5000 * 1024**5, "5000 PiB"),
    ],
)
def test_bytes_are_written_with_three_digits(num_bytes, text):
    """Bytes are written with three significant digits and a power of 1024."""
    assert format_bytes(num_bytes) == text


@given(st.integers(1024, 1024**5))
def test_written_bytes_are_close(num_bytes):
    """What is written is within half a percent of the number, and below 1024 of its unit."""
    value, unit = format_bytes(num_bytes).split()
    assert float(value) < 1024
    exact = float(value) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert exact == pytest.approx(num_bytes, rel=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
    ],
)
def test_seconds_carry_over(seconds, text):
    """Durations are written in the unit that fits, and rounding up carries to the next."""
    assert format_seconds(seconds) == text


def test_shares_and_accuracies():
    """Shares keep three digits however small, and what is unknown is a dash."""
    assert [format_share(*pair) for pair in ((1, 1), (1, 970), (1, 10**6), (0, 5), (5, 0))] == [
        "100 %",
        "0.103 %",
        "<0.001 %",
        "0 %",
        "–",
    ]
    assert (format_accuracy(0.8125), format_accuracy(None)) == ("81.2 %", "–")


def test_a_comparison_by_hand(make_run):
    """A run of 3200 bytes against one of 20 times that: 5 percent of the bytes, 12.5 points less."""
    small = make_run("small", (0.1, 0.5, 0.625))
    large = make_run("large", (0.1, 0.5, 0.75), scale=20)
    assert cells([small, large]) == {
        "run": ("small", "large"),
        "adapter": ("parallel", "parallel"),
        "algorithm": ("fedavg", "fedavg"),
        "rounds": ("2", "2"),
        "accuracy": ("62.5 %", "75.0 %"),
        "of": ("global model", "global model"),
        "points": ("-12.5", "–"),
        "bytes up": ("1.17 KiB", "23.4 KiB"),
        "bytes down": ("1.95 KiB", "39.1 KiB"),
        "bytes total": ("3.12 KiB", "62.5 KiB"),
        "share": ("5 %", "100 %"),
        # Of two rounds each moved half. Two clients without the backbone are 2 * 280,000 bytes more.
        "of last round": ("5 %", "100 %"),
        "with backbone": ("550 KiB", "609 KiB"),
        "share with it": ("90.3 %", "100 %"),
        "backbone once": ("273 KiB", "273 KiB"),
        "time": ("6.0 s", "6.0 s"),
    }


def test_the_reference_moved_the_most(make_run):
    """The reference is the run of the most bytes, and the first of several."""
    runs = [summarise(make_run(name, scale=scale)) for name, scale in (("a", 1), ("b", 3), ("c", 3))]
    assert reference_run(runs) == 1


def test_a_run_that_goes_on_says_so(make_run):
    """Rounds of a run that is not finished are written with the number that is planned."""
    assert cells([make_run(planned=9)])["rounds"] == ("2 of 9",)


def test_equal_accuracies_differ_by_plus_nothing(make_run):
    """A difference that rounds to zero has no minus sign."""
    paths = [make_run("a", (0.1, 0.74999)), make_run("b", (0.1, 0.75), scale=2)]
    assert cells(paths)["points"] == ("+0.0", "–")


@pytest.mark.parametrize("width", [80, 140])
def test_no_number_is_cut(make_run, width):
    """In 80 columns the names fold and every number is whole."""
    paths = [make_run("a rather long name of a run", scale=7), make_run("other", scale=1000)]
    text = "\n".join(printed(paths, width))
    numbers = [c.cells for c in compare_columns([summarise(path) for path in paths]) if c.numeric]
    assert [cell for pair in numbers for cell in pair if cell not in text] == []
    assert max(map(len, text.splitlines())) <= width


def test_names_are_not_markup(make_run):
    """Square brackets in a run's name are printed, not read as a style."""
    assert any("[bold]run" in line for line in printed([make_run("[bold]run")], 140))

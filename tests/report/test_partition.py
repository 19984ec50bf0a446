"""Who holds what, on a page and in the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedadapt.errors import ConfigError
from fedadapt.report.partition import partition_page, partition_table

COUNTS = [[8, 0, 1], [4, 4, 0], [0, 0, 0]]
NAMES = ("cat", "dog", "bird")


def printed(*arguments):
    """The terminal's table as the cells of its lines."""
    console = Console(file=io.StringIO(), width=100)
    console.print(partition_table(*arguments))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_row_a_client():
    """Size, classes held and a block a class, the largest class of a client being full."""
    head, first, second, empty = printed(COUNTS, NAMES)
    assert head.split() == ["client", "samples", "classes", "class", "0", "to", "2"]
    assert first.split("  ")[-1] == "█ ▁"
    assert first.split()[:4] == ["0", "9", "2", "█"]
    assert second.split() == ["1", "8", "2", "██"]
    assert empty.split() == ["2", "0", "0"]


def test_measures_are_columns_or_a_caption():
    """A list of measures is a column of one number a client, a single number stands below."""
    lines = printed(COUNTS, NAMES, {"skew": [0.5, 0.25, 1.0], "size Gini": 0.333})
    assert "skew" in lines[0]
    assert [line.split()[3] for line in lines[1:4]] == ["0.5", "0.25", "1"]
    assert lines[-1].strip() == "size Gini 0.333"


def test_many_classes_have_no_bars():
    """With more classes than a terminal is wide, the numbers stand alone."""
    assert "class 0" not in printed([[1] * 100], [str(index) for index in range(100)])[0]


def test_the_page_holds_the_counts(tmp_path):
    """The page has both figures, the numbers by hand, and escapes its title and names."""
    out = partition_page(
        COUNTS, ("<b>", "dog", "bird"), {"size Gini": 0.25, "skew": [1, 2, 3]}, "<i>", tmp_path / "p.html"
    )
    text = out.read_text(encoding="utf-8")
    assert "<h1>&lt;i&gt;</h1>" in text
    assert "<dd>17</dd>" in text
    assert "<dt>size Gini</dt><dd>0.25</dd>" in text
    assert 'id="samples-by-client"' in text
    assert 'id="holdings"' in text
    assert "<b>" not in text.split("<script>")[0]
    assert 'id="domains"' not in text


def test_domains_have_a_map_of_their_own(tmp_path):
    """Where domains are known the page shows who holds how much of each."""
    out = partition_page(COUNTS, NAMES, {}, "title", tmp_path / "p.html", [[9, 0], [0, 8], [0, 0]])
    text = out.read_text(encoding="utf-8")
    assert 'id="domains"' in text
    assert "domain 1" in text


@pytest.mark.parametrize(
    ("counts", "names", "measures", "message"),
    [
        ([], NAMES, {}, "at least one client"),
        ([[1, 2]], NAMES, {}, "client 0 has counts of 2 classes, but 3 are named"),
        (COUNTS, NAMES, {"skew": [1.0]}, "measure 'skew' has 1 numbers for 3 clients"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, counts, names, measures, message):
    """Counts, names and measures that do not fit each other end in one line."""
    with pytest.raises(ConfigError, match=message):
        partition_table(counts, names, measures)
    with pytest.raises(ConfigError, match=message):
        partition_page(counts, names, measures, "title", tmp_path / "page.html")

"""The table in the docs is what its command prints, and has the numbers that adapters promise."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def table():
    """The script that prints the table."""
    spec = importlib.util.spec_from_file_location("adapters_table", DOCS / "adapters_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_command_prints(table):
    """Header and the rows of ResNet-26, word for word; a row for every model."""
    page = (DOCS / "reference" / "adapters.md").read_text(encoding="utf-8")
    assert page.startswith(table.HEADER)
    ours = [line for line in page.splitlines() if line.startswith("| resnet26 |")]
    assert ours == list(table.rows("resnet26"))
    assert all(f"\n| {model} |" in page for model in table.MODELS)


def test_the_page_has_the_shares_that_are_promised():
    """They follow from counts that `test_family.py` works out by hand, and 0.00 of framing."""
    page = (DOCS / "reference" / "adapters.md").read_text(encoding="utf-8")
    shares = dict(re.findall(r"\| resnet26 \| `(\w+)`.* ([\d.]+) % \|", page))
    promised = {"parallel": 11.27, "low_rank": 1.13, "grouped": 1.57, "seeded": 0.67, "diagonal": 0.24}
    promised |= {"full": 100.0, "norm_head": 0.18}
    for adapter, share in promised.items():
        assert float(shares[adapter]) == pytest.approx(share, abs=0.011), adapter

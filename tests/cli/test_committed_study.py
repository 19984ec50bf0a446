"""What is committed as a result comes out again."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_committed_cell_comes_out_again(tmp_path, fedadapt):
    """One cell of the smoke study, with the rate that was found then: the same bytes, and the same accuracy to 0.5 points."""
    committed = ROOT / "docs" / "results" / "smoke" / "results.sqlite"
    ended = fedadapt(
        "study", ROOT / "studies" / "smoke.toml", "--cell", "5", "--check", committed,
        "--runs", tmp_path, "--jobs", "1",
    )  # fmt: skip
    assert ended.code == 0, ended
    assert "trainable=head distribution=iid seed=0" in ended.out
    assert len(list((tmp_path / "cells").iterdir())) == 1

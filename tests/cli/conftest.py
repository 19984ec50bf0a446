"""What the tests of the command line share: a run file, and ``fedadapt`` called as from a shell."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
from tiny import TOML

from fedadapt.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def recipe(tmp_path):
    """The tiny run file."""
    path = tmp_path / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


@pytest.fixture
def fedadapt(monkeypatch, capsys):
    """Calls the command line in this process, with everything that a process does but its start."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedadapt", *map(str, arguments)])
        # Or the program would be called after what runs the tests.
        monkeypatch.setattr(sys.modules["__main__"], "__package__", "")
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture
def finished(tmp_path, recipe, fedadapt):
    """The directory of a run of one round."""
    ended = fedadapt("run", recipe, "--runs", tmp_path / "runs", "--set", "rounds=1")
    assert ended.code == 0, ended.err
    return tmp_path / "runs" / "tiny"

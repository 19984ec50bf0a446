"""The source files that the rules of the house are checked on."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root of the repository, its text, and its syntax tree."""

    path: str
    text: str
    tree: ast.Module


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def sources(root: Path) -> list[Source]:
    """Every Python file of the package."""
    return _read(root, root / "src")


@pytest.fixture(scope="session")
def test_sources(root: Path) -> list[Source]:
    """Every Python file of the tests."""
    return _read(root, root / "tests")


def _read(root: Path, folder: Path) -> list[Source]:
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    return [Source(str(path.relative_to(root)), text, ast.parse(text)) for path, text in texts.items()]

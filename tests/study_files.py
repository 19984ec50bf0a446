"""A study of runs that take a second, and ways to write another one."""

from __future__ import annotations

from pathlib import Path

from tiny import TOML

STUDY = """
recipe = "tiny.toml"
seeds = [0, 1]
settings = { rounds = 2 }

[axes.trainable]
parallel = { adapter = "parallel" }
head = { adapter = "head" }

[axes.distribution]
iid = { data.partition = "iid" }
skewed = { data.partition = { name = "dirichlet", alpha = 0.5 } }
"""

SEARCH = """
[search]
per = ["trainable"]
values = [0.01, 0.1]
settings = { rounds = 1, data.validation_fraction = 0.2 }
"""


def write_study(folder: Path, text: str = STUDY) -> Path:
    """Writes a study and the tiny recipe under it."""
    (folder / "tiny.toml").write_text(TOML, encoding="utf-8")
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return path

"""Imports go the way the plan of the house says; the contracts are in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_import_contracts_are_kept(root):
    """import-linter finds no broken contract, and every room has a place in the layers."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": "src", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

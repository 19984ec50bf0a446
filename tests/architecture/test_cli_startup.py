"""The command line and a site's app answer at once, because they load nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "plotly", "sklearn", "flwr_datasets", "datasets", "matplotlib")


@pytest.mark.parametrize(
    "module",
    ["fedadapt.cli", "fedadapt.engines.flower.client_app", "fedadapt.engines.flower.site_file"],
)
def test_importing_what_must_be_light_imports_nothing_heavy(root, module):
    """Neither torch nor another heavy library is loaded; Flower starts a site's app for every message."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []

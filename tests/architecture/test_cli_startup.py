"""The command line answers at once, because it loads nothing heavy until a command needs it."""

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = ("torch", "torchvision", "timm", "plotly", "sklearn", "flwr_datasets", "datasets", "matplotlib")


def test_importing_the_command_line_imports_nothing_heavy(root):
    """After `import fedadapt.cli`, neither torch nor another heavy library is loaded."""
    code = f"import sys, fedadapt.cli; print(*[name for name in {HEAVY!r} if name in sys.modules])"
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

"""Where a benchmark writes what it found, and what stands beside it."""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedadapt.experiment.build import processor


def write(
    folder: Path,
    results: Any,
    *,
    hardware: str | None = None,
    threads: int = 1,
    packages: Sequence[str] = (),
    **told: Any,
) -> Path:
    """Writes ``SCRIPT_HARDWARE_DATE.json``, and says so.

    Args:
        folder: made if it is not there.
        results: what was measured.
        hardware: the name of what it was measured on; None for this processor.
        threads: of a process.
        packages: whose versions count, besides fedadapt and torch.
        told: what else the script says of itself; paths become text.
    """
    script, now = Path(sys.argv[0]), datetime.now(UTC)
    name = hardware or processor()
    document = {
        "command": shlex.join(["python", f"benchmarks/{script.name}", *sys.argv[1:]]),
        "date": now.isoformat(timespec="seconds"),
        **told,
        "hardware": {"name": name, "machine": platform.machine(), "threads": threads},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("fedadapt", "torch", *packages)},
        },
        "results": results,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{script.stem.replace('_', '-')}_{slug}_{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")
    return path

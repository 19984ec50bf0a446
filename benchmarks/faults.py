"""Kills every kind of process of a federation again and again, and writes down what that cost.

``python benchmarks/faults.py --rounds 60 --kills 30 --out docs/results/faults.json`` runs a server and three sites on
the loopback interface, with TLS and node keys, until all rounds are committed. Meanwhile each kind of process is
killed by SIGKILL up to so many times, at instants drawn from a seed. The script ends with an error unless the
result is, bit for bit, that of a simulation in which just the updates counted that the run says counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
# One thread everywhere: how many share a sum decides its last bits, and the result is compared bit for bit.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from chaos import torment  # noqa: E402 - the path and the threads come first

from fedadapt.experiment.build import processor  # noqa: E402 - likewise


def main() -> None:
    """Runs the federation and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--kills", type=int, default=30, help="of each kind of process, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=30.0, help="of a round, in seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "faults.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = torment(Path(folder), options.rounds, options.seed, options.deadline, options.kills)
    document = {
        "benchmark": "faults",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "load": list(os.getloadavg()),
        "seed": options.seed,
        "deadline_s": options.deadline,
        **figures.to_json(),
    }
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()

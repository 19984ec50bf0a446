"""What registered clients cost: memory, and the time of a round, with a thousand to a million of them.

``OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/population.py`` plays the same federation of virtual clients on the
bundled digits, a hundred updates a round taken from 130 clients asked, with every number of registered clients; each in
a process of its own, interleaved and repeated. Clients are sampled by size among lazily drawn ones, drop out, are slow
and do part of the work; the technique is SCAFFOLD, so that every client that took part has a memory. Writes a JSON file.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REGISTERED = (1_000, 10_000, 100_000, 1_000_000)
LIMIT_BYTES = 2 * 10**9
CONFIG: dict[str, Any] = {
    "name": "population",
    "rounds": 5,
    "cohort": 100,
    "backbone": {"name": "resnet20", "width": 0.25},
    "algorithm": {"name": "scaffold"},
    "data": {
        "source": {"name": "digits", "size": 16},
        "partition": {"name": "virtual", "size": 16, "sigma": 1.0, "alpha": 0.5},
        "augment": {"pad": 1, "flip": False},
    },
    "train": {"lr": 0.01, "batch_size": 16, "device": "cpu"},
    "evaluate": {"every": 5},
    "population": {
        "sampling": {"name": "by_size"},
        "over_selection": 1.3,
        "dropout": 0.05,
        "slowness": 0.5,
        "deadline_s": 20.0,
        "least_work": 0.5,
    },
}


def play_one(registered: int) -> dict[str, Any]:
    """Plays the federation in this process, and says what it took."""
    begun = time.process_time()
    from fedadapt.experiment import run
    from fedadapt.experiment.config import make_config
    from fedadapt.runs.records import Outcome
    from fedadapt.runs.store import FILE, RunStore

    imported = time.process_time()
    config = make_config(CONFIG | {"data": CONFIG["data"] | {"num_clients": registered}})
    with tempfile.TemporaryDirectory() as folder:
        path = run(config, Path(folder))
        took = time.process_time() - imported
        with RunStore.read(path) as store:
            rounds = store.rounds()[1:]
            records = store.clients()
            outcomes = {outcome.value: sum(r.outcome is outcome for r in records) for outcome in Outcome}
            memories = sum(store.memory(client) is not None for client in {r.client for r in records})
        num_bytes = (path / FILE).stat().st_size
    return {
        "registered": registered,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "round_cpu_s": [summary.cpu_s for summary in rounds],
        "round_wall_s": [summary.wall_s for summary in rounds],
        "steps": sum(record.num_steps for record in records),
        "around_cpu_s": took - sum(summary.cpu_s for summary in rounds),
        "import_cpu_s": imported - begun,
        "outcomes": outcomes,
        "clients_asked": len({record.client for record in records}),
        "clients_with_memory": memories,
        "run_bytes": num_bytes,
    }


def main() -> None:
    """Measures, prints and writes; fails if a million clients take more memory than they may."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file"
    )
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--note", default="", help="about the machine, kept with the result")
    parser.add_argument("--one", type=int, help="plays once with so many clients, and prints JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(play_one(arguments.one)))
        return
    plays: list[dict[str, Any]] = []
    for _ in range(arguments.repetitions):
        for registered in REGISTERED:
            command = [sys.executable, __file__, "--one", str(registered)]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            plays.append(json.loads(ended.stdout))
    print(f"{'registered':>10}{'peak MB':>9}{'round s':>9}{'ms a step':>11}{'around s':>10}")
    results = {}
    for registered in REGISTERED:
        same = [play for play in plays if play["registered"] == registered]
        rounds = [seconds for play in same for seconds in play["round_cpu_s"]]
        a_step = statistics.median(sum(play["round_cpu_s"]) / play["steps"] for play in same)
        results[str(registered)] = {
            "peak_bytes": max(play["peak_bytes"] for play in same),
            "round_cpu_s_median": statistics.median(rounds),
            "round_cpu_s_by_step": a_step,
            "around_cpu_s": statistics.median(play["around_cpu_s"] for play in same),
            "plays": same,
        }
        found = results[str(registered)]
        print(
            f"{registered:>10}{found['peak_bytes'] / 1e6:>9.0f}{found['round_cpu_s_median']:>9.2f}"
            f"{1e3 * a_step:>11.2f}{found['around_cpu_s']:>10.2f}"
        )
    # Here, so that the processes that are measured load what they use and no more.
    from document import write

    write(arguments.out, results, packages=("numpy",), note=arguments.note, config=CONFIG)
    most = max(play["peak_bytes"] for play in plays)
    if most > LIMIT_BYTES:
        sys.exit(f"{most / 1e9:.2f} GB of memory, more than {LIMIT_BYTES / 1e9:g} GB")


if __name__ == "__main__":
    main()

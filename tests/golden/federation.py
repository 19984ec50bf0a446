"""A short federation whose numbers are stored; run as a script it prints them anew.

``OMP_NUM_THREADS=1 PYTHONPATH=src python tests/golden/federation.py > tests/golden/federation.json``
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from fedadapt.experiment import run
from fedadapt.experiment.config import make_config
from fedadapt.runs.store import RunStore

DOCUMENT = {
    "name": "golden",
    "seed": 1,
    "rounds": 2,
    "backbone": {"name": "resnet20", "width": 0.25},
    "data": {
        "source": {"name": "digits", "size": 16},
        "partition": {"name": "dirichlet"},
        "num_clients": 4,
        "limit": 200,
        "augment": {"pad": 1, "flip": False},
    },
    "train": {"lr": 0.05, "batch_size": 16, "device": "cpu"},
}


def measure(norms: str, folder: Path) -> dict[str, object]:
    """The losses and ledger totals of the federation under one norm policy."""
    config = make_config(DOCUMENT | {"name": norms, "norms": {"name": norms}})
    with RunStore.read(run(config, folder)) as store:
        return {
            "loss": [summary.metrics["loss"] for summary in store.rounds()],
            "train_loss": [summary.metrics.get("train_loss") for summary in store.rounds()],
            "examples": [record.num_examples for record in store.clients(1)],
            "steps": [record.num_steps for record in store.clients(1)],
            "ledger": [[t.round, t.direction.value, t.group, t.num_bytes] for t in store.ledger_totals()],
        }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        found = {norms: measure(norms, Path(name)) for norms in ("frozen", "local", "averaged")}
    json.dump(found, sys.stdout, indent=1)

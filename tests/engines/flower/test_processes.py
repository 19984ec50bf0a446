"""A federation of real processes gives what the simulation of it gives."""

from __future__ import annotations

import json

import pytest
from nodes import Federation
from tiny import TOML, outcome, tiny

from fedadapt.experiment import run
from fedadapt.runs.records import Direction
from fedadapt.runs.store import RunStore

SETTINGS = ("data.num_clients=3", "rounds=5", "norms=local", "train.schedule=cosine", "engine.chunk=1")
RECIPE = (
    TOML.replace("num_clients = 4", "num_clients = 3").replace(
        "rounds = 3", "rounds = 5\nnorms = {name = 'local'}"
    )
    + "schedule = 'cosine'\n[engine]\nchunk = 1\n"
)
OVERHEAD = 8192
"""Bytes that Flower may need for a message beyond our frame: its own header, hashes and our line of JSON."""

pytestmark = pytest.mark.flower


def test_a_federation_equals_its_simulation(tmp_path):
    """Five rounds over TLS with node keys: same state to the bit, same ledger, same clients, same accuracy."""
    with Federation(tmp_path, RECIPE) as federation:
        federation.serve()
        for client in federation.sites:
            federation.join(client)
        assert federation.finish() == 0, federation.said("server")
    simulated, real = outcome(run(tiny(*SETTINGS), tmp_path / "simulated")), outcome(federation.run)
    assert real["config"] == simulated["config"]
    assert real["state"] == simulated["state"]
    assert real["ledger"] == simulated["ledger"]
    assert real["clients"] == simulated["clients"]
    assert real["rounds"] == simulated["rounds"]
    _check_against_what_flower_counted(federation)
    assert "key" not in (federation.run / "server.log").read_text()


def _check_against_what_flower_counted(federation):
    counted = json.loads((federation.run / "flower" / "traffic.json").read_text())
    messages = (5 + 1) * len(federation.sites)
    with RunStore.read(federation.run) as store:
        ledger = store.ledger()
    for direction, name in ((Direction.DOWNLOAD, "outbound-bytes"), (Direction.UPLOAD, "inbound-bytes")):
        ours = sum(entry.num_bytes for entry in ledger if entry.direction is direction)
        flowers = sum(run[name] for run in counted.values())
        assert 0 < flowers - ours < OVERHEAD * messages

"""A server that dies as its machine does, with all that it started, goes on from what is on its disk."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter

import pytest
from chaos import hold_against_replay, kill_tree
from nodes import SITE, Federation
from tiny import TOML, outcome

from fedadapt.experiment import run
from fedadapt.experiment.config import load_config
from fedadapt.params import from_bytes, to_bytes
from fedadapt.runs.records import Outcome
from fedadapt.runs.store import RunStore

ROUNDS = 6
RECIPE = (
    TOML.replace("lr = 0.01", "lr = 0.1\nbatch_size = 16").replace(
        "rounds = 3",
        f"""
rounds = {ROUNDS}
cohort = 2
algorithm = {{ name = "fedadam", lr = 0.003 }}
codec = {{ name = "int4 > zstd", error_feedback = true }}
""",
    )
    + "\n[engine]\nchunk = 1\n[federation]\nquorum = 2\n"
)


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.timeout(3600)
def test_a_server_killed_with_all_its_processes_goes_on(tmp_path):
    """Moments, cohorts and what packing lost survive three deaths: all end where the simulation does, bit for bit."""
    draw = random.Random(0)
    with Federation(tmp_path, RECIPE, dict.fromkeys(range(4), SITE)) as federation:
        federation.serve()
        for client in federation.sites:
            federation.join(client)
        federation.wait_until_said("server", f"round 1 of {ROUNDS}", 900)
        for last in (1, 3, 4):
            federation.wait_until_said("server", f"round {last} of {ROUNDS}", 900)
            time.sleep(draw.uniform(0, 6))
            assert federation.processes["server"].poll() is None
            assert kill_tree(federation, "server") >= 4
            federation.serve()
        assert federation.finish(2400) == 0, federation.said("server")
    config, records, _ = hold_against_replay(federation.run)
    assert Counter(record.outcome for record in records) == {Outcome.ACCEPTED: 2 * ROUNDS}
    assert len({record.client for record in records}) > config.cohort
    simulated = run(load_config(federation.recipe), tmp_path / "simulated")
    ours, theirs = outcome(federation.run), outcome(simulated)
    for what in ("rounds", "state", "clients"):
        assert ours[what] == theirs[what]
    with RunStore.read(simulated) as store:
        for client in federation.sites:
            (home,) = (tmp_path / f"site{client}" / "fedadapt-site").glob("*/terms.json")
            last = max(record.round for record in records if record.client == client)
            kept = from_bytes((home.parent / f"memory-{last}").read_bytes())
            lost = store.memory(client)["residual:delta"]
            assert any(tensor.any() for tensor in lost.values())
            assert to_bytes({"lost": kept[f"{client} residual:delta"]}) == to_bytes({"lost": lost})


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.timeout(3600)
def test_a_site_that_lost_its_disk_holds_nobody_up(tmp_path):
    """It holds no version that a step starts from, and the quorum needs it: it is sent the version whole at once."""
    recipe = RECIPE.replace("cohort = 2\n", "").replace(", error_feedback = true", "")
    recipe = recipe.replace("num_clients = 4", "num_clients = 2")
    with Federation(tmp_path, recipe, dict.fromkeys(range(2), SITE)) as federation:
        federation.serve()
        for client in federation.sites:
            federation.join(client)
        federation.wait_until_said("server", f"round 2 of {ROUNDS}", 900)
        kill_tree(federation, "site1")
        shutil.rmtree(tmp_path / "site1" / "fedadapt-site")
        federation.join(1)
        assert federation.finish(1800) == 0, federation.said("server")
    _, records, _ = hold_against_replay(federation.run)
    assert Counter(record.outcome for record in records) == {Outcome.ACCEPTED: 2 * ROUNDS}
    assert "starts from version" in federation.said("site1") + federation.said("server")

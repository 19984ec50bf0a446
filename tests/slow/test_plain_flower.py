"""People with a SuperLink of their own need no command of ours but one that writes the app."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from nodes import Federation
from tiny import TOML, outcome, tiny

from fedadapt.engines.flower.processes import Child, flwr, free_port, program, wait_for
from fedadapt.experiment import run
from fedadapt.experiment.federated import rounds_done
from fedadapt.runs.records import FRAMING, Direction

RECIPE = TOML.replace("num_clients = 4", "num_clients = 2").replace("rounds = 3", "rounds = 2")


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.timeout(3600)
def test_plain_flower_plays_a_run(tmp_path):
    """`serve --prepare`, then Flower's own commands: the result is the simulation's, bit for bit."""
    site = 'share = true\n[source]\nname = "digits"\nsize = 12\n'
    federation = Federation(tmp_path, RECIPE, {0: site, 1: site}, secure=False)
    app, home, port = tmp_path / "app", tmp_path / "flwr", free_port()
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    with federation:
        federation.start(
            "prepare", "serve", federation.recipe, f"--prepare={app}", f"--runs={tmp_path / 'runs'}"
        )
        assert federation.processes.pop("prepare").wait(300) == 0, federation.said("prepare")
        assert "flwr run" in federation.said("prepare")
        # As its users do: a mod of Flower's own is added to the app before it is run.
        written = app / "federation" / "site.py"
        with_mod = "from flwr.clientapp.mod import message_size_mod\n" + written.read_text()
        assert with_mod.count('open_desk"))') == 1
        written.write_text(with_mod.replace('open_desk"))', 'open_desk"), mods=[message_size_mod])'))
        command = [program("flower-superlink"), "--insecure", f"--port={port}"]
        children = [Child(command, home, tmp_path / "link.log")]
        try:
            children[0].start()
            wait_for(port, children[0], 300)
            for client in federation.sites:
                place = tmp_path / f"site{client}"
                command = [
                    program("flower-supernode"),
                    "--insecure",
                    f"--superlink=127.0.0.1:{port}",
                    f"--port={free_port()}",
                    f'--node-config=site="{place / "site.toml"}"',
                ]
                children.append(Child(command, home, place / "node.log"))
                children[-1].start()
            assert flwr(home, "run", str(app), "here")["success"]
            until = time.monotonic() + 3000
            while rounds_done(federation.run)[0] < 2:
                assert all(child.alive for child in children)
                assert time.monotonic() < until, (tmp_path / "link.log").read_text()
                time.sleep(0.5)
        finally:
            for child in children:
                child.stop()
    for client in federation.sites:
        log = (tmp_path / f"site{client}" / "node.log").read_text(errors="replace")
        # A greeting and two rounds at least, and each way.
        assert log.count("Incoming message size: ") >= 3
        assert log.count("Outgoing message size: ") >= 3
    simulated = outcome(run(tiny("data.num_clients=2", "rounds=2", "engine.chunk=1"), tmp_path / "simulated"))
    real = outcome(federation.run)
    assert real["state"] == simulated["state"]
    # On a busy machine a site may be asked again and answer twice: those bytes are in the ledger as well.
    real_entries, once = Counter(real["ledger"]), Counter(simulated["ledger"])
    assert once <= real_entries
    for entry in real_entries - once:
        assert entry.direction is Direction.DOWNLOAD or entry.group == FRAMING
        assert entry.direction is Direction.UPLOAD or entry in once
    assert real["clients"] == simulated["clients"]

"""A federation of real processes gives what the simulation of it gives."""

from __future__ import annotations

import http.client
import json
import ssl
from collections import Counter

import pytest
from nodes import SITE, Federation, make_certificates, make_key
from tiny import TOML, outcome, tiny

from fedadapt.errors import EngineError
from fedadapt.experiment import run
from fedadapt.runs.records import FRAMING, Direction
from fedadapt.runs.store import RunStore

SETTINGS = (
    "data.num_clients=3",
    "data.local_test_fraction=0.2",
    "evaluate.every=2",
    "rounds=5",
    "norms=local",
    "head={name='trained', start='class_means'}",
    "train.schedule=cosine",
    "engine.chunk=1",
)
RECIPE = (
    TOML.replace("num_clients = 4", "num_clients = 3\nlocal_test_fraction = 0.2").replace(
        "rounds = 3", "rounds = 5\nnorms = {name = 'local'}\nhead = {name = 'trained', start = 'class_means'}"
    )
    + "schedule = 'cosine'\n[engine]\nchunk = 1\n[evaluate]\nevery = 2\n"
)
OVERHEAD = 8192
"""Bytes that Flower may need for a message beyond our frame: its own header, hashes and our line of JSON."""

# The limit only stops what hangs; on a busy machine the processes take minutes to start.
pytestmark = [pytest.mark.flower, pytest.mark.timeout(1800)]


def test_a_federation_equals_its_simulation(tmp_path):
    """Five rounds over TLS with node keys: same state to the bit, same ledger, same clients, same accuracy of each.

    Only what sites need to measure themselves is sent besides. The server is attacked by outsiders from its start, and a
    site first comes with another recipe. All are refused with a line that says why, and leave no trace in the run.
    """
    with Federation(tmp_path, RECIPE) as federation:
        federation.serve()
        other = tmp_path / "other.toml"
        other.write_text(
            RECIPE.replace("lr = 0.01", "lr = 0.02").replace("[backbone]", "name = 'tiny'\n[backbone]")
        )
        federation.join(0, *federation.credentials(0), f"--recipe={other}")
        federation.join(1)
        federation.join(2)
        federation.wait_until_said("server", "open to sites")
        _attack_from_outside(federation)
        federation.wait_until_said("server", "is refused: recipe is")
        federation.wait_until_said("site0", "does not fit the federation: recipe is")
        federation.stop("site0")
        federation.join(0)
        assert federation.finish() == 0, federation.said("server")
    simulated, real = outcome(run(tiny(*SETTINGS), tmp_path / "simulated")), outcome(federation.run)
    assert real["config"] == simulated["config"]
    assert real["state"] == simulated["state"]
    _check_ledgers(Counter(real["ledger"]), Counter(simulated["ledger"]))
    assert real["clients"] == simulated["clients"]
    assert {client.round for client in real["clients"] if client.accuracy is not None} == {2, 4, 5}
    assert real["rounds"] == simulated["rounds"]
    _check_against_what_flower_counted(federation)
    said = [file.read_text(errors="replace") for file in tmp_path.rglob("*.log")]
    secrets = [
        (tmp_path / f"site{client}" / "key").read_text().splitlines()[1] for client in federation.sites
    ]
    assert said
    assert not [secret for secret in secrets if any(secret in text for text in said)]


def _attack_from_outside(federation):
    """Wrong authority, a key that nobody registered, no key, operators' paths, and four GiB in a hundred bytes."""
    folder, trust = federation.folder, str(federation.folder / "tls" / "ca.pem")
    make_certificates(folder / "elsewhere")
    stranger = folder / "stranger"
    stranger.mkdir()
    (stranger / "site.toml").write_text(SITE)
    make_key(stranger / "key")
    address, data = f"127.0.0.1:{federation.port}", f"--data={stranger / 'site.toml'}"
    federation.start(
        "deceived",
        "join",
        address,
        data,
        f"--ca={folder / 'elsewhere' / 'ca.pem'}",
        f"--key={stranger / 'key'}",
    )
    assert federation.processes.pop("deceived").wait(120) == EngineError.exit_code
    assert "is not trusted: self-signed certificate" in federation.said("deceived") or (
        "is not trusted: unable to get local issuer" in federation.said("deceived")
    )
    federation.start("stranger", "join", address, data, f"--ca={trust}", f"--key={stranger / 'key'}")
    federation.wait_until_said("stranger", "lacks this site's public key")
    federation.stop("stranger")

    def ask(path, headers=None, body=b""):
        connection = http.client.HTTPSConnection(
            "127.0.0.1", federation.port, timeout=30, context=ssl.create_default_context(cafile=trust)
        )
        connection.putrequest("POST", path)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    for path in (
        "register-node",
        "activate-node",
        "pull-messages",
        "push-messages",
        "get-run",
        "pull-object",
    ):
        assert 400 <= ask(f"/v1/fleet/{path}", body=bytes(100)) < 500, path
    assert ask("/v1/control/start-run") == 404
    assert ask("/v1/runtime/push-messages") == 404
    assert ask("/v1/fleet/push-object", {"content-length": str(4 * 2**30)}, bytes(100)) == 413


def _check_ledgers(real, simulated):
    """A download and an answer for each site after the rounds that are measured, and otherwise the same to the byte."""
    assert simulated <= real
    measures = Counter(
        (e.round, e.client, e.direction) for e in (real - simulated).elements() if e.group == FRAMING
    )
    assert measures == Counter(
        (n, client, way) for n in (2, 4, 5) for client in range(3) for way in Direction
    )


def _check_against_what_flower_counted(federation):
    counted = json.loads((federation.run / "flower" / "traffic.json").read_text())
    messages = (5 + 2 + 3) * len(federation.sites)
    with RunStore.read(federation.run) as store:
        ledger = store.ledger()
    for direction, name in ((Direction.DOWNLOAD, "outbound-bytes"), (Direction.UPLOAD, "inbound-bytes")):
        ours = sum(entry.num_bytes for entry in ledger if entry.direction is direction)
        flowers = sum(run[name] for run in counted.values())
        assert 0 < flowers - ours < OVERHEAD * messages

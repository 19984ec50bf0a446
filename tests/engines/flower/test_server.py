"""A server keeps to itself what it registered, and is one for each run."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedadapt.engines.flower import server as module
from fedadapt.engines.flower.processes import Child
from fedadapt.engines.flower.server import Address, FlowerServer, read_key
from fedadapt.errors import ConfigError, EngineError, RunInUse
from fedadapt.runs.lock import acquire


class Register:
    """Flower's commands for nodes: keys that it knows cannot be registered again."""

    def __init__(self):
        self.nodes = {}

    def __call__(self, home, *arguments):
        if arguments[1] == "list":
            return {"nodes": [{"node-id": node} for node in self.nodes.values()]}
        key = arguments[2]
        if key in self.nodes:
            raise EngineError("flwr supernode failed: Public key already in use")
        self.nodes[key] = str(100 + len(self.nodes))
        return {"node-id": self.nodes[key]}


def key_of(client):
    """A public key, the same for each client at every call."""
    public = ec.derive_private_key(client + 1, ec.SECP384R1()).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes the server of one run with two sites, and Flower's register."""
    register, told = Register(), []
    monkeypatch.setattr(module, "flwr", register)
    keys = {}
    for client in (0, 1):
        keys[client] = tmp_path / f"{client}.pub"
        keys[client].write_text(f"{key_of(client)} somebody\n")

    def make():
        address = Address("127.0.0.1", 1, None, None)
        return FlowerServer(tmp_path / "run", address, keys, lambda: (0, 1), told.append, print)

    return make, register, told, tmp_path / "run" / module.HOME


def test_a_key_that_was_registered_but_not_written_down_is_found(made):
    """A kill between the two must not lock the server out: the node that nobody knows is the one."""
    make, register, told, home = made
    server = make()
    server._register()
    assert told == [{100: 0, 101: 1}]
    record = home / "registered.json"
    known = json.loads(record.read_text())
    record.write_text(json.dumps({key_of(0): known[key_of(0)]}))
    server._register()
    assert told[1] == told[0]
    assert json.loads(record.read_text()) == known
    register.nodes["another"] = "7"
    record.write_text(json.dumps({key_of(0): known[key_of(0)]}))
    with pytest.raises(EngineError, match="already in use"):
        server._register()


@pytest.mark.parametrize(
    "said", [b"", b"ecdsa-sha2-nistp384", b"\xff\xfe key", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"]
)
def test_what_is_no_public_key(tmp_path, said):
    """Another file, such as the private one beside it, is known before anything starts."""
    (tmp_path / "key").write_bytes(said)
    with pytest.raises(ConfigError, match="is not a public key of a site"):
        read_key(tmp_path / "key")


def test_a_run_has_one_server(made):
    """A second one would write over the certificate of the first."""
    make, _, _, home = made
    server = make()
    lock = acquire(home)
    with pytest.raises(RunInUse, match="is in use by process"):
        server.keep_going()
    os.close(lock)
    assert not (home / "config.toml").exists()


def test_a_failure_counts_while_rounds_are_missing(made, monkeypatch):
    """What the last of two apps said of a run is no error once the other has played it to its end."""
    make, *_, home = made
    server, done = make(), iter([0, 0, 0, 1, 1, 1])
    monkeypatch.setattr(Child, "alive", True)
    monkeypatch.setattr(server, "_submit", lambda: False)
    monkeypatch.setattr(server, "_rounds", lambda: (next(done), 1))
    (home / module.FAILURE).write_text("no use")
    server._watch()
    monkeypatch.setattr(server, "_rounds", lambda: (0, 1))
    with pytest.raises(EngineError, match="no use"):
        server._watch()


def test_flower_may_fail_at_a_submission_in_passing(made, monkeypatch):
    """It is said, and the run is submitted again."""
    make, register, *_ = made
    server, fails = make(), [True, False, True]

    def flwr(home, *arguments):
        if arguments[0] == "run" and fails.pop(0):
            raise EngineError("flwr run did not end in 120 s")
        return {"run-id": 5} if arguments[0] == "run" else register(home, *arguments)

    monkeypatch.setattr(module, "flwr", flwr)
    monkeypatch.setattr(module, "GRACE_S", 0.0)
    assert [server._submit(), server._submit()] == [False, True]
    assert server._submitted == ["5"]
    # A submission may take effect and not say so: whoever has the run's lock plays it.
    monkeypatch.setattr(module, "GRACE_S", 60.0)
    monkeypatch.setattr(Child, "alive", True)
    held = iter([False, False, True])
    monkeypatch.setattr(module, "is_held", lambda run: next(held))
    assert server._submit()


def test_a_full_disk_is_named(made, monkeypatch):
    """Who stops for it has no room to write down why."""
    make, *_, home = made
    server = make()
    monkeypatch.setattr(Child, "alive", True)
    monkeypatch.setattr(server, "_submit", lambda: False)
    monkeypatch.setattr(server, "_rounds", lambda: (0, 1))
    with pytest.raises(EngineError, match="after 5 tries; see"):
        server._watch()
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=4096))
    with pytest.raises(EngineError, match="after 5 tries, and its disk has only 4,096 bytes left; see"):
        server._watch()

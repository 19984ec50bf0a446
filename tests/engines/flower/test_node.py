"""A site's processes: where they are sent to, and that a SuperNode of no more use is known from its words."""

from __future__ import annotations

import os
import stat
import threading
import time

import pytest
from nodes import make_certificates

from fedadapt.engines.flower.gate import PREFIX, GateServer
from fedadapt.engines.flower.node import Way, _check_server, keep_joined, node_command
from fedadapt.engines.flower.processes import GIVEN_UP, Child, free_port
from fedadapt.errors import ConfigError


@pytest.mark.flower
@pytest.mark.timeout(300)
@pytest.mark.parametrize("failing", ["pull-messages", "send-node-heartbeat"])
def test_a_supernode_that_was_answered_amiss_is_not_alive(tmp_path, failing):
    """One answer that it does not repeat a request for ends its work, and not its process."""

    async def link(scope, receive, send):
        call = scope["path"].removeprefix(PREFIX)
        # Field 1 of the answer to an activation is the node's number.
        body = b"\x08\x07" if call == "activate-node" else b""
        status = 500 if call == failing else 200
        headers = [(b"content-type", b"application/protobuf"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    port = free_port()
    command = node_command(Way(f"127.0.0.1:{port}", None, None), tmp_path / "nobody")
    node = Child(command, tmp_path, tmp_path / "log", farewells=GIVEN_UP)
    with GateServer(link, "127.0.0.1", port, None, None):
        node.start()
        try:
            until = time.monotonic() + 200
            while node.alive:
                assert time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.1)
            time.sleep(1.0)
            os.kill(node.pid, 0)
            assert (
                f"500 Internal Server Error' for url 'http://127.0.0.1:{port}{PREFIX}{failing}"
                in (tmp_path / "log").read_text()
            )
        finally:
            node.stop()


def test_a_sites_folder_is_its_users_alone(tmp_path):
    """Not only Flower's folder in it: the worker keeps its memory beside."""
    (tmp_path / "ca.pem").write_text("no certificate")
    way, home = Way("localhost:8443", tmp_path / "ca.pem", None), tmp_path / "fedadapt-site" / "flower"
    with pytest.raises(ConfigError, match="is no certificate"):
        keep_joined(way, ["worker"], home, print, threading.Event())
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (home.parent, home)] == [0o700, 0o700]


def test_an_address_that_no_host_can_have(tmp_path):
    """It is said at once, in one line, and not tried for ever."""
    make_certificates(tmp_path)
    with pytest.raises(ConfigError, match=r"server a\.\.b:8443 is no name that a host can have"):
        _check_server(Way("a..b:8443", tmp_path / "ca.pem", None))

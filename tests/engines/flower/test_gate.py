"""The gate lets nodes through and nothing else."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from nodes import make_certificates

from fedadapt.engines.flower.gate import CALLS, MAX_BODY_BYTES, PREFIX, Gate, GateServer
from fedadapt.engines.flower.processes import free_port
from fedadapt.errors import EngineError


class Upstream(BaseHTTPRequestHandler):
    """Says what it was asked."""

    def do_POST(self):
        """Answers with the path, the length of the body and a header."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        said = json.dumps([self.path, len(body), self.headers.get("signature")]).encode()
        self.send_response(201)
        self.send_header("content-length", str(len(said)))
        self.send_header("x-from", "upstream")
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def upstream():
    """A server on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def port(upstream):
    """The port of a gate without TLS."""
    number = free_port()
    with GateServer(Gate(upstream, None), "127.0.0.1", number, None, None):
        yield number


def ask(port, method, path, body=b"", headers=None, context=None):
    """One request; the status and the body of the answer."""
    kind = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
    options = {} if context is None else {"context": context}
    connection = kind("127.0.0.1", port, timeout=20, **options)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()


def test_nodes_pass(port):
    """Path, body and headers arrive, and the answer comes back as it was given."""
    status, said, headers = ask(port, "POST", "/v1/fleet/pull-messages", b"x" * 1000, {"signature": "abc"})
    assert (status, json.loads(said)) == (201, ["/v1/fleet/pull-messages", 1000, "abc"])
    assert headers["x-from"] == "upstream"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/push-messages"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/"),
        pytest.param("POST", "/v1/fleet/" + 60_000 * "x", id="long"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/"),
        ("GET", "/v1/fleet/pull-messages"),
        ("GET", "/docs"),
    ],
)
def test_others_do_not(port, method, path):
    """Operators' commands, the server app's messages and all that Flower would only write to its log end at the gate."""
    assert ask(port, method, path)[0] == 404


def test_the_calls_of_nodes_are_those_that_flower_has():
    """A release with another call would be known here, and not by sites that are turned away."""
    router = pytest.importorskip("flwr.superlink.routers.fleet.router").router
    assert {(method, route.path) for route in router.routes for method in route.methods} == {
        ("POST", PREFIX + call) for call in CALLS
    }


def test_long_bodies_are_refused_unread(port):
    """By what they claim, and by what comes if they claim nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/v1/fleet/push-object")
    connection.putheader("content-length", str(4 * 2**30))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()

    def endless():
        while True:
            yield bytes(2**20)

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/v1/fleet/push-object")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    sent = 0
    try:
        for piece in endless():
            connection.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            sent += len(piece)
            assert sent < 8 * MAX_BODY_BYTES
    except OSError:
        pass
    connection.close()


def test_bodies_that_do_not_come_hold_nobody_up(upstream):
    """More half requests than a pool of connections has: honest nodes pass, and the others are turned away."""
    number = free_port()
    head = b"POST /v1/fleet/get-run HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n1"
    with GateServer(Gate(upstream, None, patience_s=2.0), "127.0.0.1", number, None, None):
        stalled = [socket.create_connection(("127.0.0.1", number), timeout=20) for _ in range(150)]
        try:
            for one in stalled:
                one.sendall(head)
            assert ask(number, "POST", "/v1/fleet/get-run", b"abc")[0] == 201
            answers = {one.recv(12) for one in stalled}
        finally:
            for one in stalled:
                one.close()
    assert answers == {b"HTTP/1.1 408"}


def test_a_server_that_is_away_is_a_502():
    """Nodes try again later."""
    number = free_port()
    with GateServer(Gate(f"http://127.0.0.1:{free_port()}", None), "127.0.0.1", number, None, None):
        assert ask(number, "POST", "/v1/fleet/register-node")[0] == 502


def test_tls(upstream, tmp_path):
    """With a certificate the gate speaks TLS, and only to whom that is enough."""
    make_certificates(tmp_path)
    number = free_port()
    trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    pair = tmp_path / "server.pem", tmp_path / "server.key"
    with GateServer(Gate(upstream, None), "127.0.0.1", number, *pair):
        assert ask(number, "POST", "/v1/fleet/get-run", b"", {}, trust)[0] == 201
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(number, "POST", "/v1/fleet/get-run", b"", {}, ssl.create_default_context())


def test_a_taken_port_is_one_line(port, upstream):
    """Listening where somebody else does is an error that says so."""
    with (
        pytest.raises(EngineError, match="cannot listen on"),
        GateServer(Gate(upstream, None), "127.0.0.1", port, None, None),
    ):
        pass

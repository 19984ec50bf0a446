"""Bytes below our frames: noise at a server's door, with a site's key or without, and noise in what a node says."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedadapt.engines.flower.gate import CALLS, PREFIX, Gate, Receive, Scope, Send

LENGTHS = (0, 1, 2, 7, 40, 500, 70_000)


class Noise:
    """Speaks nonsense to a server's port until it is told to stop; a context manager.

    Args:
        port: on the loopback interface.
        authority: PEM file that the server's certificate is checked with.
        key: private key of a site, in OpenSSH's form, with which half of the requests are signed.
        seed: of what is said.
    """

    def __init__(self, port: int, authority: Path, key: Path, seed: int) -> None:
        self.heard = Counter[str]()
        self._port = port
        self._trust = ssl.create_default_context(cafile=str(authority))
        private = serialization.load_ssh_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self._private = private
        self._draw = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _speak(self) -> None:
        url = f"https://127.0.0.1:{self._port}"
        ways = (self._over_tcp, self._over_tls, self._over_http, self._over_http)
        with httpx.Client(base_url=url, verify=self._trust, timeout=20) as client:
            while not self._stop.wait(0.1):
                # A server that takes no more of it may end the connection, or be about to start.
                with suppress(OSError, httpx.TransportError):
                    self._draw.choice(ways)(client)

    def _over_tcp(self, _: httpx.Client) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=5) as line:
            line.sendall(self._bytes())
            self.heard["tcp"] += 1

    def _over_tls(self, _: httpx.Client) -> None:
        with (
            socket.create_connection(("127.0.0.1", self._port), timeout=5) as line,
            self._trust.wrap_socket(line, server_hostname="127.0.0.1") as inside,
        ):
            inside.sendall(self._bytes())
            self.heard["tls"] += 1

    def _over_http(self, client: httpx.Client) -> None:
        signed = self._draw.random() < 0.5
        headers = {"content-type": "application/protobuf"} | (self._signature() if signed else {})
        body = self._bytes() if self._draw.random() < 0.5 else self._fields()
        said = client.post(
            PREFIX + self._draw.choice((*CALLS, "no-such-call")), content=body, headers=headers
        )
        self.heard[f"{'signed' if signed else 'unsigned'} {said.status_code}"] += 1

    def _bytes(self) -> bytes:
        return self._draw.randbytes(self._draw.choice(LENGTHS))

    def _fields(self) -> bytes:
        """A message that can be taken apart, with whatever in it."""
        said = bytearray()
        for number in range(1, self._draw.randrange(2, 6)):
            if self._draw.random() < 0.5:
                said += bytes([number << 3, self._draw.randrange(128)])
            else:
                inside = bytes([1 << 3, self._draw.randrange(128)]) * self._draw.randrange(20)
                said += bytes([number << 3 | 2, len(inside)]) + inside
        return bytes(said)

    def _signature(self) -> dict[str, str]:
        """What a node shows of itself: its public key, and the time signed with the private one."""
        now = datetime.now(UTC).isoformat()
        shown = self._private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        signature = self._private.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": b64encode(shown).decode(),
            "flwr-timestamp": now,
            "flwr-signature": b64encode(signature).decode(),
        }


class Twister:
    """Alters some of the bodies on their way to a gate; what the node signed stays as it is.

    Args:
        gate: where they go.
        share: of the bodies that are altered.
        seed: of which and how.
    """

    def __init__(self, gate: Gate, share: float, seed: int) -> None:
        self.twisted = Counter[str]()
        self._gate = gate
        self._share = share
        self._draw = random.Random(seed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards one request, altered or not."""

        async def noisy() -> dict[str, object]:
            event = dict(await receive())
            body = bytearray(event.get("body") or b"")
            if altered and body:
                self.twisted[scope["path"].removeprefix(PREFIX)] += 1
                start = self._draw.randrange(len(body))
                if self._draw.random() < 0.5:
                    body[start] ^= 1 << self._draw.randrange(8)
                else:
                    body[start:] = self._draw.randbytes(len(body) - start)
            return event | {"body": bytes(body)}

        altered = self._draw.random() < self._share
        await self._gate(scope, noisy, send)

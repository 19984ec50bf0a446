"""The door of a server: what sites may say to Flower, and how much at once.

Flower serves its nodes and its operators on one port, and without an account service it takes everyone for an
operator, who may start programs on the server and on every site. So the SuperLink listens on the loopback
interface only, and this gate lets through what nodes need and nothing else.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn

from fedadapt.errors import EngineError

PREFIX = "/v1/fleet/"
"""Where nodes speak to the SuperLink."""

CALLS = (
    "register-node",
    "activate-node",
    "deactivate-node",
    "unregister-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
"""All that they say there. Any other path, however long, Flower would write to its log before it refuses it."""

_PATHS = {PREFIX + call for call in CALLS}

MAX_BODY_BYTES = 16 * 2**20
"""Of one request; Flower itself cuts arrays into pieces of 5 MiB."""

TIMEOUT_S = 60.0

MAX_CONNECTIONS = 1000
"""At a time; requests on further ones are answered with 503."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""What ASGI calls so; a gate is one."""

_HOP_BY_HOP = {b"connection", b"host", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}


class _TooLong(Exception):
    """A body that is longer than allowed."""


class _Stalled(Exception):
    """A body of which nothing comes any more."""


class Gate:
    """An ASGI application that forwards the requests of nodes.

    Args:
        upstream: where the SuperLink listens, as a URL.
        trust: verifies the SuperLink's certificate; None without TLS.
        patience_s: for the next piece of a body.
    """

    def __init__(self, upstream: str, trust: ssl.SSLContext | None, patience_s: float = TIMEOUT_S) -> None:
        # Without limits: a request takes a connection before its body is there, and whoever sends none would hold
        # what others need.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._client = httpx.AsyncClient(
            base_url=upstream, verify=trust or False, timeout=TIMEOUT_S, limits=limits
        )
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if scope["method"] != "POST" or path not in _PATHS:
            await _refuse(send, 404)
            return
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP]
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            await _refuse(send, 413)
            return
        request = self._client.build_request("POST", path, headers=headers, content=self._body(receive))
        try:
            response = await self._client.send(request, stream=True)
        except _TooLong:
            await _refuse(send, 413)
            return
        except _Stalled:
            await _refuse(send, 408)
            return
        except (TimeoutError, httpx.HTTPError):
            await _refuse(send, 502)
            return
        try:
            kept = [(name, value) for name, value in response.headers.raw if name.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            await response.aclose()

    async def _body(self, receive: Receive) -> AsyncIterator[bytes]:
        total = 0
        while True:
            try:
                event = await asyncio.wait_for(receive(), self._patience_s)
            except TimeoutError as error:
                raise _Stalled from error
            if event["type"] == "http.disconnect":
                raise httpx.ReadError("the node went away")
            piece = event.get("body", b"")
            total += len(piece)
            if total > MAX_BODY_BYTES:
                raise _TooLong
            yield piece
            if not event.get("more_body"):
                return


async def _refuse(send: Send, status: int) -> None:
    # Closing keeps whoever is refused from sending the rest.
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body"})


class GateServer:
    """A gate at work in a thread of its own; a context manager.

    Args:
        gate: the application that answers.
        host: the interface to listen on.
        port: likewise.
        certificate: and `key`: for TLS; None for neither.
        key: see `certificate`.

    Raises:
        EngineError: on entry, if the port cannot be had or the certificate not be used.
    """

    def __init__(
        self, gate: Application, host: str, port: int, certificate: Path | None, key: Path | None
    ) -> None:
        self._place = f"{host}:{port}"
        config = uvicorn.Config(
            gate,
            host=host,
            port=port,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            limit_concurrency=MAX_CONNECTIONS,
            log_level="critical",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._problem = ""

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise EngineError(
                    f"cannot listen on {self._place}: {self._problem or 'the address is in use'}"
                )
            self._thread.join(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            self._server.run()
        except (OSError, ssl.SSLError) as error:
            self._problem = str(error)
        except SystemExit:
            pass

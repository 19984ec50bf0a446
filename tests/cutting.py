"""A way to a server that breaks when the test wants it to."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self

BURST_BYTES = 4096
"""What a node sends at once when it polls is shorter; what it sends of an update is longer."""


class Cutter:
    """Passes bytes on to a port of the loopback interface; a context manager.

    Args:
        upstream: the port.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closed_until = 0.0
        self._lock = threading.Lock()
        self.port = self._listener.getsockname()[1]
        self.cuts_left = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def cut_uploads(self, times: int) -> None:
        """Ends the next so many connections in the middle of a long burst from the node."""
        with self._lock:
            self.cuts_left = times

    def close_for(self, seconds: float) -> None:
        """Lets nothing through for a while."""
        self._closed_until = time.monotonic() + seconds

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._upstream))
                except OSError:
                    near.close()
                    continue
                for pair, up in (((near, far), True), ((far, near), False)):
                    threading.Thread(
                        target=self._pass_on, args=pair, kwargs={"upwards": up}, daemon=True
                    ).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, *, upwards: bool) -> None:
        burst, last = 0, 0.0
        with suppress(OSError), source, target:
            while piece := source.recv(2048):
                if time.monotonic() < self._closed_until:
                    return
                burst = len(piece) + (burst if time.monotonic() - last < 0.2 else 0)
                last = time.monotonic()
                with self._lock:
                    cut = upwards and self.cuts_left > 0 and burst > BURST_BYTES
                    self.cuts_left -= cut
                if cut:
                    return
                target.sendall(piece)

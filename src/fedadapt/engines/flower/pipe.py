"""The way from Flower's app on a site to the worker that answers for it: one message each way over a local socket.

Flower starts a process for every message. That process stays small: it hands the message to the site's worker,
which holds the model and the data. Little-endian::

    offset  size  field
    0       4     magic, b"FADW"
    4       4     bytes of the kind
    8       4     bytes of the text
    12      8     bytes of the frame
    20      ...   kind and text, UTF-8; frame

A length over its limit is refused before anything after it is read, and memory is taken as bytes come.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedadapt.errors import EngineError, FrameError
from fedadapt.federation.handshake import MAX_TEXT

MAGIC = b"FADW"
MAX_KIND_BYTES = 64
MAX_TEXT_BYTES = 8 * MAX_TEXT
MAX_FRAME_BYTES = 2**31
"""Far above any frame that a wire reads; what travels is checked again where it is read."""

STALL_S = 60.0
"""How long one side may take nothing, or say nothing in the middle of a message."""

TRIES = 3
"""How often a worker may die over one message before the message is to blame."""

_HEADER = struct.Struct("<4sIIQ")
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Parcel:
    """What goes over the pipe.

    Args:
        kind: of message; the answer has the same.
        text: a document of the handshake, as JSON.
        frame: empty if there is none.
    """

    kind: str
    text: str
    frame: bytes = b""


Desk = Callable[[Parcel], Parcel]
"""Whoever answers."""


def write(line: socket.socket, parcel: Parcel) -> None:
    """Sends a parcel.

    Raises:
        OSError: the other side is gone.
    """
    kind, text = parcel.kind.encode(), parcel.text.encode()
    line.sendall(_HEADER.pack(MAGIC, len(kind), len(text), len(parcel.frame)) + kind + text)
    line.sendall(parcel.frame)


def read(line: socket.socket) -> Parcel:
    """Receives a parcel.

    Raises:
        FrameError: it is none.
        OSError: the other side is gone, or stalls.
    """
    magic, *lengths = _HEADER.unpack(_take(line, _HEADER.size))
    limits = (MAX_KIND_BYTES, MAX_TEXT_BYTES, MAX_FRAME_BYTES)
    if magic != MAGIC or any(length > limit for length, limit in zip(lengths, limits, strict=True)):
        raise FrameError(f"local message claims {lengths} bytes, at most {list(limits)} are read")
    kind, text, frame = (_take(line, length) for length in lengths)
    try:
        return Parcel(kind.decode(), text.decode(), frame)
    except UnicodeDecodeError as error:
        raise FrameError(f"local message is not UTF-8 at byte {error.start}") from None


def _take(line: socket.socket, count: int) -> bytes:
    taken = bytearray()
    while len(taken) < count:
        piece = line.recv(min(count - len(taken), _PIECE_BYTES))
        if not piece:
            raise ConnectionAbortedError(f"local message ended after {len(taken)} of {count} bytes")
        taken += piece
    return bytes(taken)


def listen(place: Path) -> socket.socket:
    """A socket at `place`, for this user alone; one that an earlier process left there is replaced."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with _short(place) as name:
        before = os.umask(0o177)
        try:
            listener.bind(name)
        finally:
            os.umask(before)
    listener.listen()
    return listener


def attend(listener: socket.socket, desk: Desk) -> None:
    """Answers one parcel after the other, for as long as the listener is open."""
    while True:
        line, _ = listener.accept()
        with line:
            line.settimeout(STALL_S)
            # Whoever asked may be gone by the time there is an answer; then he asks again.
            with suppress(OSError, FrameError):
                write(line, desk(read(line)))


def is_attended(place: Path) -> bool:
    """Whether somebody answers at `place`."""
    with suppress(OSError), _connect(place):
        return True
    return False


def ask(place: Path, parcel: Parcel, patience_s: float = 120.0) -> Parcel:
    """Brings a parcel to the worker at `place` and waits for the answer, as long as that takes.

    A worker that dies is started again by whoever watches it, and a request that it had before gets the answer
    that it gave then. So a parcel whose answer did not come is brought again.

    Args:
        place: of the worker's socket.
        parcel: the question.
        patience_s: seconds to wait for a worker that is not there.

    Raises:
        EngineError: no worker is there, or it dies over this parcel each time.
    """
    lost, until = 0, time.monotonic() + patience_s
    while lost < TRIES:
        try:
            with _connect(place) as line:
                write(line, parcel)
                return read(line)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > until:
                raise EngineError(
                    f"nobody answers for this site at {place}; start it again with: fedadapt join"
                ) from None
            time.sleep(0.2)
        except OSError:
            lost, until = lost + 1, time.monotonic() + patience_s
    raise EngineError(f"the worker of this site ended {TRIES} times over one message; see its worker.log")


@contextmanager
def _connect(place: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as line, _short(place) as name:
        line.connect(name)
        yield line


@contextmanager
def _short(place: Path) -> Iterator[str]:
    """A name for `place` that fits where the system takes no more than 108 bytes."""
    folder = os.open(place.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{place.name}"
    finally:
        os.close(folder)

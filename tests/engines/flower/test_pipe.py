"""The pipe to a site's worker: what goes in comes out, and neither side trusts or needs the other."""

from __future__ import annotations

import socket
import stat
import struct
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedadapt.engines.flower.pipe import (
    MAX_FRAME_BYTES,
    TRIES,
    Parcel,
    ask,
    attend,
    is_attended,
    listen,
    read,
    write,
)
from fedadapt.errors import EngineError, FrameError

HELLO = Parcel("query.hello", '{"a": "ü"}', b"\x00\xff" * 700_000)


@pytest.fixture
def serve():
    """Starts desks in threads; they end with the test."""
    listeners = []

    def start(place, desk):
        listener = listen(place)
        listeners.append(listener)
        thread = threading.Thread(target=_quietly, args=(listener, desk), daemon=True)
        thread.start()
        return listener

    yield start
    for listener in listeners:
        listener.close()


def _quietly(listener, desk):
    with suppress(OSError):
        attend(listener, desk)


def test_a_parcel_arrives_as_it_was_sent(tmp_path, serve):
    """Text with letters outside ASCII and a frame larger than a socket's buffer, both ways."""
    serve(tmp_path / "socket", lambda parcel: parcel)
    assert ask(tmp_path / "socket", HELLO) == HELLO


def test_a_deep_folder_is_no_obstacle(tmp_path, serve):
    """The system's limit of 108 bytes for the name of a socket does not reach users."""
    place = tmp_path / ("d" * 120) / "socket"
    serve(place, lambda parcel: parcel)
    assert is_attended(place)
    assert ask(place, HELLO) == HELLO


def test_others_cannot_reach_a_worker(tmp_path, serve):
    """The socket is its user's alone."""
    serve(tmp_path / "socket", lambda parcel: parcel)
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (struct.pack("<4sIIQ", b"FADW", 5, 5, 2**32), "claims"),
        (struct.pack("<4sIIQ", b"FADW", 5, 2**31, 0), "claims"),
        (struct.pack("<4sIIQ", b"FADW", 65, 5, 0), "claims"),
        (struct.pack("<4sIIQ", b"HTTP", 5, 5, 0), "claims"),
        (struct.pack("<4sIIQ", b"FADW", 1, 1, 0) + b"\xff\xff", "UTF-8"),
    ],
)
def test_what_claims_too_much_is_refused_unread(header, why):
    """By its header alone; the writer need not send, nor the reader make room for, what it claims."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(header)
        with pytest.raises(FrameError, match=why):
            read(here)


def test_room_is_made_for_what_comes(tmp_path):
    """A sender that claims two GiB and goes away has cost the reader nothing."""
    here, there = socket.socketpair()
    with here:
        there.sendall(struct.pack("<4sIIQ", b"FADW", 1, 1, MAX_FRAME_BYTES) + b"kt" + bytes(100))
        there.close()
        with pytest.raises(ConnectionAbortedError, match="after 100 of"):
            read(here)


@given(st.binary(max_size=200))
def test_rubbish_is_refused(data):
    """Bytes that are no parcel end in an error that says so."""
    here, there = socket.socketpair()
    with here:
        there.sendall(data)
        there.close()
        with pytest.raises((FrameError, ConnectionAbortedError)):
            read(here)


def test_a_worker_outlives_who_asks(tmp_path, serve):
    """Rubbish, half a message, and a visitor who leaves before the answer do not end it."""
    place = tmp_path / "socket"
    serve(place, lambda parcel: parcel)
    for data in (b"GET / HTTP/1.1\r\n\r\n", struct.pack("<4sIIQ", b"FADW", 5, 5, 5) + b"half"):
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(place))
            visitor.sendall(data)
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(str(place))
        write(visitor, HELLO)
    assert ask(place, HELLO) == HELLO


def test_who_asks_outlives_a_worker(tmp_path, serve):
    """A message whose answer is lost is brought again, to the worker that has been started in the meantime."""
    place, asked = tmp_path / "socket", []

    def die_once(parcel):
        asked.append(parcel)
        if len(asked) == 1:
            raise OSError
        return parcel

    serve(place, die_once)
    assert ask(place, HELLO) == HELLO
    assert len(asked) == 2


def test_a_message_that_kills_each_worker_is_given_up(tmp_path, serve):
    """With one line, so that the server can record it."""
    asked = []

    def die(parcel):
        asked.append(parcel)
        raise OSError

    serve(tmp_path / "socket", die)
    with pytest.raises(EngineError, match="ended 3 times over one message"):
        ask(tmp_path / "socket", HELLO)
    assert len(asked) == TRIES


def test_a_worker_that_is_late_is_waited_for(tmp_path, serve):
    """It may just be starting; if it never comes, that is an error."""
    place = tmp_path / "socket"
    threading.Timer(0.5, serve, (place, lambda parcel: parcel)).start()
    assert ask(place, HELLO, patience_s=30) == HELLO
    assert not is_attended(tmp_path / "other")
    begun = time.monotonic()
    with pytest.raises(EngineError, match="nobody answers for this site"):
        ask(tmp_path / "other", HELLO, patience_s=0.3)
    assert time.monotonic() - begun >= 0.3

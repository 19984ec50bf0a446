"""Frames that nobody should take: noise, and sound frames that were cut, stretched, altered or relabelled."""

from __future__ import annotations

import random
import struct
import zlib

from contracts.cases import first_state, tiny_model, tiny_party

from fedadapt.errors import FrameError
from fedadapt.federation.frame import Kind
from fedadapt.federation.messages import EVERYONE, Reply
from fedadapt.federation.round import accept, play
from fedadapt.federation.serve import serve
from fedadapt.runs.records import Outcome

HEADER = 64
LENGTHS = (0, 1, 3, 64, 67, 68, 76, 100, 400)


def twist(draw: random.Random, sound: bytes) -> bytes:
    """A frame that is not the one it was made of."""
    while True:
        data = bytearray(sound)
        way = draw.randrange(6)
        if way == 0:
            data = bytearray(draw.randbytes(draw.choice(LENGTHS)))
        elif way == 1:
            data[:HEADER] = b"FADP\x01\x01" + draw.randbytes(HEADER - 6)
        elif way == 2:
            del data[draw.randrange(len(data)) :]
        elif way == 3:
            data += draw.randbytes(draw.randrange(1, 64))
        elif way == 4:
            data[draw.randrange(HEADER)] ^= 1 << draw.randrange(8)
        else:
            # A section that claims up to 2**64 bytes.
            num_scalars, num_sections = struct.unpack_from("<HH", sound, 6)
            place = HEADER + 8 * (num_scalars + draw.randrange(num_sections))
            data[place : place + 8] = struct.pack("<Q", draw.getrandbits(draw.randrange(1, 65)))
        if draw.random() < 0.5 and len(data) >= 4:
            # Whoever means harm gets the checksum right.
            data[-4:] = struct.pack("<I", zlib.crc32(memoryview(data)[:-4]))
        if data != sound:
            return bytes(data)


def storm(count: int, seed: int) -> int:
    """Sends `count` twisted frames against a server's and a site's door; gives how many were taken for sound."""
    party = tiny_party(tiny_model())
    state, draw, taken = first_state(party), random.Random(seed), 0
    (request,) = next(play(party.algorithm, party.wire, state, 1, [3]))
    (reply,) = serve([request], party)
    for number in range(count):
        if number % 2:
            frame = twist(draw, reply.frame)
            _, record, received = accept(Reply(1, 3, frame), party.algorithm, party.wire, 1, 3)
            assert record.outcome in (Outcome.REFUSED, Outcome.ACCEPTED)
            assert sum(received.values()) == len(frame)
            taken += record.outcome is Outcome.ACCEPTED
        else:
            taken += _is_read(party, twist(draw, request.frame))
    return taken


def _is_read(party, frame: bytes) -> bool:
    """Whether a site would train on a download."""
    try:
        party.wire.read(frame, Kind.DOWNLOAD, 1, EVERYONE, party.algorithm.downloads, 0)
    except FrameError:
        return False
    return True

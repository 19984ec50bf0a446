"""A frame comes back as it was packed, and bytes that are no frame raise FrameError and nothing else."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.errors import DigestMismatch, FrameError
from fedadapt.federation.frame import Frame, Identity, Kind, check_identity, framing_bytes, unpack

# Plain values; the checks around the classes draw random numbers, which strategies may not.
FIELDS = st.tuples(
    st.sampled_from([0, 1]),
    st.integers(0, 2**32 - 1),
    st.integers(-1, 2**63 - 1),
    st.tuples(*(st.binary(min_size=size, max_size=size) for size in (8, 16, 16))),
    st.lists(st.floats(allow_nan=False), max_size=5).map(tuple),
    st.lists(st.binary(max_size=40), max_size=5).map(tuple),
)
FRAME = Frame(Kind.UPLOAD, 3, 7, Identity(b"c" * 8, b"b" * 16, b"l" * 16), (1.0, 2.0), (b"abc", b"", b"defg"))


def frame_of(fields):
    """The frame with these values."""
    kind, round, client, identity, scalars, sections = fields
    return Frame(Kind(kind), round, client, Identity(*identity), scalars, sections)


def sealed(data):
    """`data` with its last 4 bytes replaced by a right checksum."""
    return bytes(data[:-4]) + struct.pack("<I", zlib.crc32(bytes(data[:-4])))


@given(fields=FIELDS)
def test_a_frame_comes_back(fields):
    """Every field survives, in as many bytes as the header documents."""
    frame = frame_of(fields)
    data = frame.pack()
    assert unpack(data, max_bytes=len(data)) == frame
    assert len(data) == frame.num_framing_bytes + sum(map(len, frame.sections))
    assert frame.num_framing_bytes == 68 + 8 * len(frame.scalars) + 8 * len(frame.sections)


def test_the_layout_is_the_documented_one():
    """Each field lies at the offset that the module states."""
    data = FRAME.pack()
    assert data[:4] == b"FADP"
    assert struct.unpack_from("<BBHHHIq", data, 4) == (1, 1, 2, 3, 0, 3, 7)
    assert (data[24:32], data[32:48], data[48:64]) == (b"c" * 8, b"b" * 16, b"l" * 16)
    assert struct.unpack_from("<2d3Q", data, 64) == (1.0, 2.0, 3, 0, 4)
    assert data[104:111] == b"abcdefg"
    assert struct.unpack_from("<I", data, 111) == (zlib.crc32(data[:111]),)


@settings(max_examples=500)
@given(data=st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda tail: b"FADP\1\0" + tail)))
def test_random_bytes_are_refused(data):
    """Nothing but FrameError comes out of bytes that nobody packed."""
    with pytest.raises(FrameError):
        unpack(data, max_bytes=10**6)


@settings(max_examples=300)
@given(fields=FIELDS, place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_one_altered_byte_is_noticed(fields, place, flip):
    """Wherever it is."""
    data = bytearray(frame_of(fields).pack())
    data[place % len(data)] ^= flip
    with pytest.raises(FrameError):
        unpack(bytes(data), max_bytes=len(data))


@settings(max_examples=300)
@given(fields=FIELDS, place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_an_altered_frame_with_a_right_checksum_is_a_frame_or_refused(fields, place, flip):
    """Who forges the checksum too gets FrameError or another sound frame, never any other error."""
    data = bytearray(frame_of(fields).pack())
    data[place % (len(data) - 4)] ^= flip
    try:
        other = unpack(sealed(data), max_bytes=len(data))
    except FrameError:
        return
    assert other.num_framing_bytes + sum(map(len, other.sections)) == len(data)


@given(cut=st.integers(0, len(FRAME.pack()) - 1), more=st.binary(min_size=1, max_size=20))
def test_a_frame_cut_off_or_lengthened_is_refused(cut, more):
    """The lengths have to come out exactly."""
    for data in (FRAME.pack()[:cut], FRAME.pack() + more):
        with pytest.raises(FrameError):
            unpack(data, max_bytes=10**6)


def test_a_claim_of_4_gib_in_100_bytes_is_refused():
    """The claim is compared with what is there before anything is taken out."""
    small = Frame(Kind.UPLOAD, 1, 0, FRAME.identity, (), (b"x" * 24,)).pack()
    assert len(small) == 100
    claim = bytearray(small)
    struct.pack_into("<Q", claim, 64, 2**32)
    with pytest.raises(FrameError, match="claims 4294967296 bytes of tensors, 24 are there"):
        unpack(sealed(claim), max_bytes=100)


@pytest.mark.parametrize(
    ("offset", "form", "value", "said"),
    [
        (4, "<B", 2, "schema 2"),
        (5, "<B", 9, "kind 9"),
        (6, "<H", 65, "65 scalars"),
        (8, "<H", 65535, "65535 sections"),
        (8, "<H", 60, "table of sections"),
        (10, "<H", 1, "malformed"),
        (0, "<4s", b"PK\3\4", "not from fedadapt"),
    ],
)
def test_a_wrong_header_says_what_is_wrong(offset, form, value, said):
    """Each field is checked even if the checksum is right."""
    data = bytearray(FRAME.pack())
    struct.pack_into(form, data, offset, value)
    with pytest.raises(FrameError, match=said):
        unpack(sealed(data), max_bytes=10**6)


def test_a_frame_over_the_limit_is_not_read():
    """The message has both sizes."""
    with pytest.raises(FrameError, match="115 bytes is longer than the 114"):
        unpack(FRAME.pack(), max_bytes=114)


@pytest.mark.parametrize("what", ["codec", "backbone", "layout"])
def test_an_identity_that_differs_is_named(what):
    """The message says which of the three it is."""
    own = {"codec": b"c" * 8, "backbone": b"b" * 16, "layout": b"l" * 16}
    check_identity(FRAME, Identity(**own))
    with pytest.raises(DigestMismatch, match=f"frame is for {what} "):
        check_identity(FRAME, Identity(**own | {what: own[what].upper()}))


def test_framing_stays_small():
    """Five sections and three scalars, the most that an upload of one stream has, fit in 256 bytes."""
    assert framing_bytes(3, 5) == 132
    assert framing_bytes(3, 15) <= 256

"""The frame: the one form in which anything travels, and the checks it has to pass.

Little-endian, no padding::

    offset  size  field
    0       4     magic, b"FADP"
    4       1     schema, 1
    5       1     kind: 0 download, 1 upload
    6       2     number of scalars S
    8       2     number of sections N
    10      2     zero
    12      4     round
    16      8     client; -1 for a download that is the same for all
    24      8     codec digest
    32      16    backbone digest
    48      16    layout digest
    64      8S    scalars, float64
    +       8N    length of each section, in bytes
    +       ...   the sections
    end-4   4     CRC-32 of everything before

Names and shapes are not in it: both sides know them by the layout digest. The claimed lengths are compared with
the bytes at hand before anything is taken out.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from fedadapt.errors import DigestMismatch, FrameError

MAGIC = b"FADP"
SCHEMA = 1
_HEADER = struct.Struct("<4sBBHHHIq8s16s16s")
_CHECKSUM = struct.Struct("<I")
MAX_SCALARS = 64
MAX_SECTIONS = 4096


class Kind(IntEnum):
    """What a frame is, seen from the client."""

    DOWNLOAD = 0
    UPLOAD = 1


@dataclass(frozen=True)
class Identity:
    """What two parties must have in common to understand each other.

    Args:
        codec: 8 bytes.
        backbone: 16 bytes.
        layout: 16 bytes.
    """

    codec: bytes
    backbone: bytes
    layout: bytes


@dataclass(frozen=True)
class Frame:
    """A frame taken apart.

    Args:
        kind: download or upload.
        round: counted from 1; 0 for an exchange before the first.
        client: its number; -1 if the frame is for all.
        identity: of the sender.
        scalars: numbers whose meaning both sides know by position.
        sections: packed tensors, likewise.
    """

    kind: Kind
    round: int
    client: int
    identity: Identity
    scalars: tuple[float, ...]
    sections: tuple[bytes, ...]

    @property
    def num_framing_bytes(self) -> int:
        """Bytes of the frame that are in no section."""
        return framing_bytes(len(self.scalars), len(self.sections))

    def pack(self) -> bytes:
        """The bytes that travel."""
        header = _HEADER.pack(
            MAGIC, SCHEMA, self.kind, len(self.scalars), len(self.sections), 0,
            self.round, self.client, self.identity.codec, self.identity.backbone, self.identity.layout,
        )  # fmt: skip
        scalars = struct.pack(f"<{len(self.scalars)}d", *self.scalars)
        lengths = struct.pack(f"<{len(self.sections)}Q", *(len(section) for section in self.sections))
        parts, checksum = (header, scalars, lengths, *self.sections), 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        return b"".join((*parts, _CHECKSUM.pack(checksum)))


def framing_bytes(num_scalars: int, num_sections: int) -> int:
    """What a frame costs over its sections, in bytes."""
    return _HEADER.size + 8 * num_scalars + 8 * num_sections + _CHECKSUM.size


def unpack(data: bytes, *, max_bytes: int) -> Frame:
    """Takes a frame apart after checking every length, the checksum and the schema.

    Args:
        data: what arrived.
        max_bytes: longer frames are refused unread.

    Raises:
        FrameError: it is no whole, unaltered frame of this schema.
    """
    if len(data) > max_bytes:
        raise FrameError(f"frame of {len(data)} bytes is longer than the {max_bytes} allowed")
    if len(data) < framing_bytes(0, 0):
        raise FrameError(f"frame of {len(data)} bytes is shorter than its header; it was cut off")
    magic, schema, kind, num_scalars, num_sections, zero, round_, client, *digests = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"frame starts with {magic!r}, not {MAGIC!r}; it is not from fedadapt")
    if schema != SCHEMA:
        raise FrameError(
            f"frame has schema {schema}, this version speaks {SCHEMA}; install the same version everywhere"
        )
    if kind not in tuple(Kind) or zero or num_scalars > MAX_SCALARS or num_sections > MAX_SECTIONS:
        raise FrameError(
            f"frame header is malformed (kind {kind}, {num_scalars} scalars, {num_sections} sections)"
        )
    start = framing_bytes(num_scalars, num_sections) - _CHECKSUM.size
    if len(data) < start + _CHECKSUM.size:
        raise FrameError(f"frame of {len(data)} bytes ends inside its table of sections")
    scalars = struct.unpack_from(f"<{num_scalars}d", data, _HEADER.size)
    lengths = struct.unpack_from(f"<{num_sections}Q", data, _HEADER.size + 8 * num_scalars)
    if start + sum(lengths) + _CHECKSUM.size != len(data):
        raise FrameError(
            f"frame claims {sum(lengths)} bytes of tensors, {len(data) - start - _CHECKSUM.size} are there"
        )
    if zlib.crc32(memoryview(data)[: -_CHECKSUM.size]) != _CHECKSUM.unpack_from(data, len(data) - 4)[0]:
        raise FrameError("frame checksum does not match; it was altered on its way")
    sections = []
    for length in lengths:
        sections.append(bytes(data[start : start + length]))
        start += length
    return Frame(Kind(kind), round_, client, Identity(*digests), scalars, tuple(sections))


def check_identity(frame: Frame, own: Identity) -> None:
    """Refuses a frame that was made for something else than what this party has.

    Raises:
        DigestMismatch: codec, backbone or layout differ; the message says which.
    """
    for what in ("backbone", "layout", "codec"):
        theirs, ours = getattr(frame.identity, what), getattr(own, what)
        if theirs != ours:
            raise DigestMismatch(
                f"frame is for {what} {theirs.hex()[:12]}, this party has {ours.hex()[:12]}; all parties need the same {what}"
            )

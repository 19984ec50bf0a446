"""Messages: what a request asks and a reply answers, and the wire that turns streams into frames and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedadapt.codecs import Codec
from fedadapt.errors import FrameError
from fedadapt.federation.frame import Frame, Identity, Kind, check_identity, unpack
from fedadapt.federation.plan import ExchangePlan
from fedadapt.params import Params, Streams, is_finite
from fedadapt.runs.records import FRAMING

EVERYONE = -1
"""The client number of a frame that is the same for all."""


@dataclass(frozen=True)
class Request:
    """The server asks one client for its part in a round.

    Args:
        round: counted from 1.
        client: who is asked.
        frame: a download; the same object for all clients that get the same bytes.
    """

    round: int
    client: int
    frame: bytes


@dataclass(frozen=True)
class Reply:
    """A client's answer: an upload, or the reason why there is none.

    Args:
        round: as asked.
        client: who answers.
        frame: an upload; empty if the client's work failed.
        failure: one line, if it failed.
    """

    round: int
    client: int
    frame: bytes = b""
    failure: str = ""


@dataclass(frozen=True)
class Message:
    """What a frame said, and what it took to say it.

    Args:
        streams: decoded, in fp32.
        scalars: by position.
        tally: bytes by group and for the framing.
    """

    streams: Streams
    scalars: tuple[float, ...]
    tally: dict[str, int]


@dataclass(frozen=True)
class Wire:
    """What a party needs to write and read frames.

    Every stream of a message has the plan's shared layout; it is sent as one section a group, so that the
    ledger knows the bytes of each.

    Args:
        plan: what travels.
        codec: how a section is packed.
        backbone_digest: hexadecimal SHA-256 of the backbone.
        max_bytes: longer frames are refused; None for twice the bytes that the plan needs as fp32.
    """

    plan: ExchangePlan
    codec: Codec
    backbone_digest: str
    max_bytes: int | None = None

    @property
    def identity(self) -> Identity:
        """What the other side must share."""
        return Identity(self.codec.digest, bytes.fromhex(self.backbone_digest)[:16], self.plan.digest)

    def limit(self, num_streams: int) -> int:
        """The longest frame that is read, in bytes."""
        return self.max_bytes or 2 * num_streams * self.plan.num_shared_bytes + 4096

    def write(self, kind: Kind, round: int, client: int, streams: Streams, scalars: Sequence[float]) -> bytes:
        """Packs streams into a frame."""
        sections = tuple(
            self.codec.encode({name: params[name] for name in self.plan.layout(group)})
            for params in streams.values()
            for group in self.plan.groups()
        )
        return Frame(kind, round, client, self.identity, tuple(scalars), sections).pack()

    def read(
        self, data: bytes, kind: Kind, round: int, client: int, streams: Sequence[str], num_scalars: int
    ) -> Message:
        """Unpacks a frame that should be of this kind, round and client, and hold these streams.

        Raises:
            FrameError: it is not, or a value in it is infinite or NaN.
        """
        frame = unpack(data, max_bytes=self.limit(len(streams)))
        check_identity(frame, self.identity)
        if (frame.kind, frame.round, frame.client) != (kind, round, client):
            raise FrameError(
                f"frame is {frame.kind.name.lower()} of client {frame.client} in round {frame.round}, "
                f"expected {kind.name.lower()} of client {client} in round {round}"
            )
        groups = self.plan.groups()
        if len(frame.sections) != len(streams) * len(groups) or len(frame.scalars) != num_scalars:
            raise FrameError(
                f"frame has {len(frame.sections)} sections and {len(frame.scalars)} scalars, "
                f"expected {len(streams) * len(groups)} and {num_scalars}"
            )
        sections = iter(frame.sections)
        decoded: Streams = {}
        for stream in streams:
            values: Params = {}
            for group in groups:
                values |= self.codec.decode(next(sections), self.plan.layout(group))
            if not is_finite(values):
                raise FrameError(f"stream {stream!r} of client {client} holds infinite or NaN values")
            decoded[stream] = {name: values[name] for name in self.plan.layout()}
        return Message(decoded, frame.scalars, self.tally(frame))

    def tally(self, frame: Frame) -> dict[str, int]:
        """The bytes of a frame by group, and those of its framing; they sum to its length."""
        groups = self.plan.groups()
        totals = {group.value: 0 for group in groups}
        for index, section in enumerate(frame.sections):
            totals[groups[index % len(groups)].value] += len(section)
        return totals | {FRAMING: frame.num_framing_bytes}

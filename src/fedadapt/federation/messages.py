"""Messages: what a request asks and a reply answers, and the wire that turns streams into frames and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from fedadapt.codecs import Codec, Key, make_codec
from fedadapt.errors import FrameError
from fedadapt.federation.frame import MAX_SECTIONS, Frame, Identity, Kind, check_identity, unpack
from fedadapt.federation.plan import ExchangePlan
from fedadapt.params import Group, Params, Streams, all_finite, from_vector
from fedadapt.runs.records import FRAMING, Outcome
from fedadapt.seeds import Seeds

EVERYONE = -1
"""The client number of a frame that is the same for all."""

_EXACT = make_codec("float32")


@dataclass(frozen=True)
class Request:
    """The server asks one client for its part in a round.

    Args:
        round: counted from 1; 0 for an exchange before the first.
        client: who is asked.
        frame: a download; the same object for all clients that get the same bytes.
        effort: the share of its local steps that a simulated client takes; it is not sent.
        whole: makes the frame for a client that has lost what `frame` starts from; None where downloads are no steps.
        measure: it is asked how good the model is, and not to train; see `fedadapt.federation.measure`.
        accepted: the last round whose update of this client counted, if that is not on disk yet.
    """

    round: int
    client: int
    frame: bytes
    effort: float = 1.0
    whole: Callable[[], bytes] | None = None
    measure: bool = False
    accepted: int | None = None


@dataclass(frozen=True)
class Reply:
    """A client's answer: an upload, or the reason why there is none.

    Args:
        round: as asked.
        client: who answers.
        frame: an upload; empty if the client's work failed.
        failure: one line, if there is none.
        outcome: what the failure counts as. A server never takes it from a client.
        downloads: how often the request was sent, or given to whoever carries it; more than once to a site that was
            silent, never to one that was not there. The engine says so, no client.
        wholes: how often of those it was the request's `whole`.
        measure: as asked.
    """

    round: int
    client: int
    frame: bytes = b""
    failure: str = ""
    outcome: Outcome = Outcome.FAILED
    downloads: int = 1
    wholes: int = 0
    measure: bool = False


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
        codec: how a section is packed, unless the following say otherwise.
        backbone_digest: hexadecimal SHA-256 of the backbone.
        max_bytes: longer frames are refused; None for twice the bytes that the plan needs as fp32, or what codecs may
            make of it where that is more.
        seeds: of the run; whoever reads a frame draws as whoever wrote it.
        groups: how sections of a group are packed.
        download: how sections of downloads are packed, but for running statistics; None for as uploads.
        delta: whether downloads are steps from the version that a client holds.
        error_feedback: whether clients keep what packing an upload lost, and add it to the next.
        norm_bound: an upload whose values have a greater Euclidean norm is refused; None for no bound.
        max_examples: one that says it is over more samples is refused; None for no bound.
    """

    plan: ExchangePlan
    codec: Codec
    backbone_digest: str
    max_bytes: int | None = None
    seeds: Seeds = field(default_factory=lambda: Seeds(0))
    groups: Mapping[Group, Codec] = field(default_factory=dict)
    download: Codec | None = None
    delta: bool = False
    error_feedback: bool = False
    norm_bound: float | None = None
    max_examples: int | None = None

    def codec_of(self, kind: Kind, group: Group) -> Codec:
        """How a section is packed.

        Running statistics are sent as they are, unless `groups` says otherwise and `download` does not: what rounding
        does to a difference could drive a variance below zero.
        """
        if group is Group.NORM_STATISTICS:
            apart = kind is Kind.DOWNLOAD and self.download is not None
            return _EXACT if apart else self.groups.get(group, _EXACT)
        if kind is Kind.DOWNLOAD and self.download is not None:
            return self.download
        return self.groups.get(group, self.codec)

    @property
    def lossy(self) -> bool:
        """Whether packing an upload loses something for good."""
        return not self.error_feedback and not self.exact(Kind.UPLOAD)

    def exact(self, kind: Kind) -> bool:
        """Whether packing a message of this kind loses nothing."""
        return all(self.codec_of(kind, group).law.exact for group in self.plan.groups())

    @cached_property
    def identity(self) -> Identity:
        """What the other side must share."""
        backbone = bytes.fromhex(self.backbone_digest)[:16]
        codecs = [self.codec_of(kind, group) for kind in Kind for group in self.plan.groups()]
        if all(codec == self.codec for codec in codecs) and self.codec.law.exact and not self.delta:
            return Identity(self.codec.digest, backbone, self.plan.digest)
        # With another seed a frame would be read as other values, and nobody would notice.
        text = "\n".join(
            [f"delta {self.delta}", f"seed {self.seeds.root}", *(codec.name for codec in codecs)]
        )
        return Identity(hashlib.blake2b(text.encode(), digest_size=8).digest(), backbone, self.plan.digest)

    def limit(self, num_streams: int) -> int:
        """The longest frame that is read, in bytes."""
        if self.max_bytes:
            return self.max_bytes
        # Codecs fill up small sections, some to more than the values need as they are.
        return num_streams * max(2 * self.plan.num_shared_bytes, self._most_bytes) + 8 * MAX_SECTIONS + 4096

    @cached_property
    def _most_bytes(self) -> int:
        """What the sections of a stream take at the most."""
        groups = self.plan.groups()
        return sum(
            max(self.codec_of(kind, group).most_bytes(self.plan.layout(group)) for kind in Kind)
            for group in groups
        )

    def pack(self, kind: Kind, round: int, client: int, stream: str, group: Group, params: Params) -> bytes:
        """The section of one group of a stream.

        Raises:
            FrameError: a lossy codec was given values that are not finite, or larger than it can pack.
        """
        own = {name: params[name] for name in self.plan.layout(group)}
        return self.codec_of(kind, group).encode(own, self._key(kind, round, client, stream, group))

    def unpack(
        self, kind: Kind, round: int, client: int, stream: str, group: Group, section: bytes
    ) -> Params:
        """The tensors that `pack` made this section of.

        Raises:
            FrameError: it does not fit the plan.
        """
        values = self._values(kind, round, client, stream, group, section)
        return from_vector(values, self.plan.layout(group))

    def _values(
        self, kind: Kind, round: int, client: int, stream: str, group: Group, section: bytes
    ) -> Float[Tensor, " P"]:
        key = self._key(kind, round, client, stream, group)
        return self.codec_of(kind, group).values(section, self.plan.layout(group), key)

    def write(self, kind: Kind, round: int, client: int, streams: Streams, scalars: Sequence[float]) -> bytes:
        """Packs streams into a frame."""
        sections = [
            self.pack(kind, round, client, stream, group, params)
            for stream, params in streams.items()
            for group in self.plan.groups()
        ]
        return Frame(kind, round, client, self.identity, tuple(scalars), tuple(sections)).pack()

    def open(self, data: bytes, kind: Kind, round: int, client: int, num_streams: int) -> Frame:
        """Takes a frame apart that should be of this kind, round and client.

        Raises:
            FrameError: it is not, or was made for another plan, codec or backbone.
        """
        frame = unpack(data, max_bytes=self.limit(num_streams))
        check_identity(frame, self.identity)
        if (frame.kind, frame.round, frame.client) != (kind, round, client):
            raise FrameError(
                f"frame is {frame.kind.name.lower()} of client {frame.client} in round {frame.round}, "
                f"expected {kind.name.lower()} of client {client} in round {round}"
            )
        return frame

    def read(
        self, data: bytes, kind: Kind, round: int, client: int, streams: Sequence[str], num_scalars: int
    ) -> Message:
        """Unpacks a frame that should be of this kind, round and client, and hold these streams.

        Raises:
            FrameError: it is not, or a value in it is infinite or NaN.
        """
        frame = self.open(data, kind, round, client, len(streams))
        groups = self.plan.groups()
        if len(frame.sections) != len(streams) * len(groups) or len(frame.scalars) != num_scalars:
            raise FrameError(
                f"frame has {len(frame.sections)} sections and {len(frame.scalars)} scalars, "
                f"expected {len(streams) * len(groups)} and {num_scalars}"
            )
        sections, layout = iter(frame.sections), self.plan.sent()
        decoded: Streams = {}
        for stream in streams:
            # One piece of memory, so that whoever computes with a whole stream need not go from tensor to tensor.
            values = torch.cat(
                [self._values(kind, round, client, stream, group, next(sections)) for group in groups]
            )
            if not all_finite(values):
                raise FrameError(f"stream {stream!r} of client {client} holds infinite or NaN values")
            decoded[stream] = from_vector(values, layout)
        return Message(decoded, frame.scalars, self.tally(frame))

    def _key(self, kind: Kind, round: int, client: int, stream: str, group: Group) -> Key:
        return Key(self.seeds, f"{kind.name.lower()}/{stream}/{group}", round, client)

    def tally(self, frame: Frame) -> dict[str, int]:
        """The bytes of a frame by group, and those of its framing; they sum to its length."""
        groups = self.plan.groups()
        sizes = list(map(len, frame.sections))
        totals = {group.value: sum(sizes[place :: len(groups)]) for place, group in enumerate(groups)}
        return totals | {FRAMING: frame.num_framing_bytes}

"""Downloads as steps: a client is sent what changed since the version that it holds.

Version 0 is the start that every party makes by itself, from the backbone and the seed. In round r the server
packs the step from what holders of version r - 1 hold to its model, and what it unpacks to is added on both
sides: that is version r. What packing lost is still in the difference of the next round, so it fades. A client
that is several versions behind gets all the steps that it lacks, so that all holders of a version hold the same
bits; one that is too far behind for that to be worth it, or has lost what it held, gets the version whole.

A frame has two scalars: the version it starts from, -1 for a whole one, and the checksum of the version it leads
to. Its sections are those of one step after the other. An empty section says that nothing changed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from fedadapt.codecs import Key, make_codec
from fedadapt.errors import FrameError
from fedadapt.federation.frame import MAX_SECTIONS, Frame, Kind
from fedadapt.federation.messages import EVERYONE, Wire
from fedadapt.params import Params, Streams, add, is_finite
from fedadapt.runs.records import ClientRecord, Outcome
from fedadapt.seeds import Seeds

HELD = "held:"
"""Before the names of the streams that are a version, in the server's state and in a site's memory."""

_TRACK = "download"
_STEP = "step:"
WHOLE = -1
"""In place of a version: from nothing."""
_SNAPSHOT, _KEY = make_codec("float32"), Key(Seeds(0), "whole")
"""A whole version is exact, and nothing is drawn for it."""


@dataclass(frozen=True)
class Version:
    """What all holders of a version hold.

    Args:
        number: the round that made it; 0 for the start.
        streams: the downloaded streams.
    """

    number: int
    streams: Streams

    @cached_property
    def checksum(self) -> float:
        """CRC-32 of all values."""
        crc = 0
        for params in self.streams.values():
            for tensor in params.values():
                crc = zlib.crc32(
                    tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes(), crc
                )
        return float(crc)


@dataclass(frozen=True)
class Track:
    """What the server knows of its clients' versions.

    Args:
        newest: the newest version.
        steps: sections of the steps that lead to the newest versions, without a gap.
        holders: the version that a client is known to hold, -1 if it is to get a whole one. Who is not here was
            never seen, and holds version 0; or holds one from before the oldest step, which is worth nothing.
    """

    newest: Version
    steps: Mapping[int, tuple[bytes, ...]]
    holders: Mapping[int, int]

    def base(self, client: int) -> int:
        """The version from which a client is sent steps; -1 if it is sent the newest one whole."""
        held = self.holders.get(client, 0)
        return (
            held if all(number in self.steps for number in range(held + 1, self.newest.number + 1)) else WHOLE
        )

    def advance(self, wire: Wire, round: int, target: Streams) -> Track:
        """The track with the version of `round`, which is as near to `target` as a packed step comes."""
        sections: list[bytes] = []
        streams: Streams = {}
        for stream, params in target.items():
            held = self.newest.streams[stream]
            change = {name: tensor.cpu() - held[name] for name, tensor in params.items()}
            packed = _pack_step(wire, round, stream, change)
            streams[stream] = _add_step(wire, round, stream, held, packed)
            sections += packed
        return self.extended(Version(round, streams), tuple(sections))

    def extended(self, version: Version, sections: tuple[bytes, ...]) -> Track:
        """The track with one more version, to which a step of these sections leads."""
        whole = 4 * sum(tensor.numel() for params in version.streams.values() for tensor in params.values())
        steps = _worth_keeping({**self.steps, version.number: sections}, whole)
        oldest = min(steps, default=version.number + 1) - 1
        holders = {c: v for c, v in self.holders.items() if v >= oldest or oldest == 0}
        return Track(version, steps, holders)

    def frame(self, wire: Wire, base: int) -> bytes:
        """The download for clients that hold version `base`, or for those that are to get it whole."""
        if base == WHOLE:
            sections = tuple(
                _SNAPSHOT.encode({name: params[name] for name in wire.plan.layout(group)}, _KEY)
                for params in self.newest.streams.values()
                for group in wire.plan.groups()
            )
        else:
            steps = (self.steps[number] for number in range(base + 1, self.newest.number + 1))
            sections = tuple(section for step in steps for section in step)
        scalars = (float(base), self.newest.checksum)
        return Frame(Kind.DOWNLOAD, self.newest.number, EVERYONE, wire.identity, scalars, sections).pack()

    def after(self, records: Sequence[ClientRecord]) -> Track:
        """The track once the round's answers are in.

        Who answered holds the newest version. Who failed may have lost what it held. Of others nothing new is
        known, and steps from an older version than the one it holds are of use to a client as well.
        """
        known = {Outcome.ACCEPTED: self.newest.number, Outcome.FAILED: WHOLE}
        told = {record.client: known[record.outcome] for record in records if record.outcome in known}
        return replace(self, holders={**self.holders, **told})

    def to_streams(self) -> Streams:
        """The track as part of the server's state."""
        clients = sorted(self.holders)
        track = {
            "version": torch.tensor(self.newest.number),
            "clients": torch.tensor(clients, dtype=torch.int64),
            "versions": torch.tensor([self.holders[client] for client in clients], dtype=torch.int64),
        }
        held = {HELD + stream: params for stream, params in self.newest.streams.items()}
        steps: Streams = {
            f"{_STEP}{number}": {
                f"{place:06d}": torch.frombuffer(bytearray(section), dtype=torch.uint8)
                if section
                else torch.zeros(0, dtype=torch.uint8)
                for place, section in enumerate(sections)
            }
            for number, sections in self.steps.items()
        }
        return {_TRACK: track, **held, **steps}


def without_track(state: Streams) -> Streams:
    """The algorithm's part of the server's state."""
    return {s: params for s, params in state.items() if s != _TRACK and not s.startswith((HELD, _STEP))}


def read_track(state: Streams, downloads: Sequence[str]) -> Track:
    """The track in the server's state; before the first round the state itself is version 0."""
    if _TRACK not in state:
        # Copies: a round without updates keeps the model, and a state is not stored with two names for a tensor.
        start = {stream: {n: t.cpu().clone() for n, t in state[stream].items()} for stream in downloads}
        return Track(Version(0, start), {}, {})
    track = state[_TRACK]
    steps = {
        int(stream.removeprefix(_STEP)): tuple(tensor.numpy().tobytes() for tensor in sections.values())
        for stream, sections in state.items()
        if stream.startswith(_STEP)
    }
    held = {stream: state[HELD + stream] for stream in downloads}
    holders = dict(zip(track["clients"].tolist(), track["versions"].tolist(), strict=True))
    return Track(Version(int(track["version"]), held), steps, holders)


def take(wire: Wire, data: bytes, round: int, held: Version) -> Version:
    """The version that a download leads to, for a site that holds `held`.

    Steps that the site has already taken are left out, so that a site with many clients holds one version for
    them all, and a download that comes twice does no harm.

    Raises:
        FrameError: the frame is damaged, does not start from what is held, or leads to something else than the
            server has. The server then sends the next version whole.
    """
    streams, groups = tuple(held.streams), wire.plan.groups()
    frame = wire.open(data, Kind.DOWNLOAD, round, EVERYONE, len(streams))
    width = len(streams) * len(groups)
    base, checksum = frame.scalars if len(frame.scalars) == 2 else (float("nan"), 0.0)
    num_steps = 1 if base == WHOLE else round - base
    if not (base >= WHOLE and base.is_integer() and num_steps * width == len(frame.sections)):
        raise FrameError(
            f"download has {len(frame.sections)} sections from version {base}, {width} are a step"
        )
    if base != WHOLE and not base <= held.number <= round:
        raise FrameError(f"download starts from version {base:.0f}, this party holds {held.number}")
    if held.number == round and held.checksum == checksum:
        return held
    if base == WHOLE:
        taken = Version(round, _read_whole(wire, streams, frame.sections))
    else:
        values = dict(held.streams)
        for number in range(held.number + 1, round + 1):
            begin = (number - int(base) - 1) * width
            for place, stream in enumerate(streams):
                own = frame.sections[begin + place * len(groups) : begin + (place + 1) * len(groups)]
                values[stream] = _add_step(wire, number, stream, values[stream], own)
        taken = Version(round, values)
    if taken.checksum != checksum or not all(is_finite(params) for params in taken.streams.values()):
        raise FrameError(
            f"download leads to other values than the server's in version {round}; what this party held differs"
        )
    return taken


def remember(version: Version) -> Streams:
    """A version as a site's memory."""
    held = {HELD + stream: params for stream, params in version.streams.items()}
    return {_TRACK: {"version": torch.tensor(version.number)}, **held}


def recall(memory: Streams) -> Version:
    """The version that a site remembers."""
    held = {s.removeprefix(HELD): params for s, params in memory.items() if s.startswith(HELD)}
    return Version(int(memory[_TRACK]["version"]), held)


def _pack_step(wire: Wire, round: int, stream: str, change: Params) -> list[bytes]:
    """A section for each group; an empty one if nothing changed."""
    return [
        wire.pack(Kind.DOWNLOAD, round, EVERYONE, stream, group, change)
        if any(bool(change[name].any()) for name in wire.plan.layout(group))
        else b""
        for group in wire.plan.groups()
    ]


def _add_step(wire: Wire, round: int, stream: str, held: Params, sections: Sequence[bytes]) -> Params:
    """What is held, and the change that a step packs."""
    values = dict(held)
    for group, section in zip(wire.plan.groups(), sections, strict=True):
        if section:
            change = wire.unpack(Kind.DOWNLOAD, round, EVERYONE, stream, group, section)
            values |= add({name: values[name] for name in change}, change)
    return values


def _read_whole(wire: Wire, streams: Sequence[str], sections: Sequence[bytes]) -> Streams:
    remaining = iter(sections)
    found: Streams = {}
    for stream in streams:
        values: Params = {}
        for group in wire.plan.groups():
            values |= _SNAPSHOT.decode(next(remaining), wire.plan.layout(group), _KEY)
        found[stream] = {name: values[name] for name in wire.plan.layout()}
    return found


def _worth_keeping(steps: Mapping[int, tuple[bytes, ...]], whole: int) -> dict[int, tuple[bytes, ...]]:
    """The newest steps, as many as are together smaller than the version whole and fit into a frame."""
    kept: dict[int, tuple[bytes, ...]] = {}
    num_bytes = num_sections = 0
    for number in sorted(steps, reverse=True):
        num_bytes += sum(map(len, steps[number])) + 8 * len(steps[number])
        num_sections += len(steps[number])
        if num_bytes >= whole or num_sections > MAX_SECTIONS:
            break
        kept[number] = steps[number]
    return dict(sorted(kept.items()))

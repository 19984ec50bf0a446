"""One round of a federation as a generator that does no I/O: it yields requests and is sent replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

from fedadapt.algorithms import Algorithm, Update
from fedadapt.errors import FrameError
from fedadapt.federation import versions
from fedadapt.federation.drift import measure_drift
from fedadapt.federation.frame import Kind, unpack
from fedadapt.federation.messages import EVERYONE, Reply, Request, Wire
from fedadapt.federation.serve import UPLOAD_SCALARS
from fedadapt.params import Streams, is_finite, norm
from fedadapt.runs.records import FRAMING, ClientRecord, Direction, LedgerEntry, Outcome


@dataclass(frozen=True)
class Played:
    """What a round came to.

    Args:
        state: the server's after the round; the old one if nobody's update was accepted.
        clients: one record for each client asked.
        ledger: every byte that moved.
        drift: of the updates that count; see `measure_drift`.
    """

    state: Streams
    clients: tuple[ClientRecord, ...]
    ledger: tuple[LedgerEntry, ...]
    drift: Mapping[str, float] = field(default_factory=dict)


def play(
    algorithm: Algorithm, wire: Wire, state: Streams, round: int, cohort: Sequence[int]
) -> Generator[list[Request], Sequence[Reply], Played]:
    """Plays one round.

    Replies may come in any order and some may be missing: they are folded in the order of client numbers, and
    every absence, failure and refusal is recorded. Nothing a reply says is trusted before it is checked.

    Args:
        algorithm: the technique.
        wire: how to write and read frames.
        state: the server's before the round.
        round: counted from 1.
        cohort: whom to ask; nobody's round changes nothing.

    Yields:
        One list of requests; the driver sends back the replies.

    Returns:
        The new state and the round's records.
    """
    frames, track = downloads(algorithm, wire, state, round, cohort)
    tallies = {id(frame): tally(wire, frame) for frame in frames.values()}
    sent = {client: tallies[id(frames[client])] for client in cohort}
    whole = None if track is None else cache(partial(track.frame, wire, versions.WHOLE))
    tally_whole = cache(lambda: tally(wire, whole()) if whole else {})
    replies = yield [Request(round, client, frames[client], whole=whole) for client in cohort]
    answers, strays = first_answers(replies, round, cohort)
    ledger = downloaded(round, sent, answers, tally_whole) + strays
    updates, records = list[Update](), list[ClientRecord]()
    for client in sorted(cohort):
        update, record, received = accept(answers.get(client), algorithm, wire, round, client)
        records.append(record)
        ledger += [LedgerEntry(round, client, Direction.UPLOAD, g, n) for g, n in received.items()]
        if update is not None:
            updates.append(update)
    own = state if track is None else versions.without_track(state)
    new, updates, records = step(
        algorithm, own, updates, records, lambda new: try_to_send(algorithm, wire, new, round + 1, track)
    )
    if track is not None:
        new = new | track.after(records).to_streams()
    return Played(new, tuple(records), tuple(ledger), measure_drift(updates, algorithm.moving))


def downloads(
    algorithm: Algorithm, wire: Wire, state: Streams, round: int, cohort: Sequence[int]
) -> tuple[dict[int, bytes], versions.Track | None]:
    """The frame of each client, one object for all that get the same bytes; and what clients hold once they have it."""
    streams = {name: state[name] for name in algorithm.downloads}
    if not wire.delta:
        return dict.fromkeys(cohort, wire.write(Kind.DOWNLOAD, round, EVERYONE, streams, ())), None
    track = versions.read_track(state, algorithm.downloads).advance(wire, round, streams)
    bases = {client: track.base(client) for client in cohort}
    frames = {base: track.frame(wire, base) for base in set(bases.values())}
    return {client: frames[base] for client, base in bases.items()}, track


def try_to_send(
    algorithm: Algorithm, wire: Wire, state: Streams, round: int, track: versions.Track | None
) -> None:
    """Packs the download of a round, if packing may fail.

    Raises:
        FrameError: its codec cannot carry the values, or what clients would hold is infinite.
    """
    if wire.exact(Kind.DOWNLOAD):
        return
    streams = {name: state[name] for name in algorithm.downloads}
    if track is None:
        wire.write(Kind.DOWNLOAD, round, EVERYONE, streams, ())
    elif not all(map(is_finite, track.advance(wire, round, streams).newest.streams.values())):
        raise FrameError("a version has infinite or NaN values")


def first_answers(
    replies: Sequence[Reply], round: int, cohort: Sequence[int], *, measure: bool = False
) -> tuple[dict[int, Reply], list[LedgerEntry]]:
    """The first reply of each client that was asked; the bytes of what came besides.

    What is late, sent twice, or from a client that was not asked has moved, and counts for nothing else.
    """
    answers: dict[int, Reply] = {}
    strays = []
    for reply in replies:
        asked = (reply.round, reply.measure) == (round, measure) and reply.client in cohort
        if asked and reply.client not in answers:
            answers[reply.client] = reply
        else:
            strays.append(LedgerEntry(round, reply.client, Direction.UPLOAD, FRAMING, len(reply.frame)))
    return answers, strays


def downloaded(
    round: int,
    tallies: Mapping[int, Mapping[str, int]],
    answers: Mapping[int, Reply],
    whole: Callable[[], Mapping[str, int]] = dict,
) -> list[LedgerEntry]:
    """The bytes of each client's download by group, as often as it went out; once if the engine does not say.

    Args:
        round: of the requests.
        tallies: of each request's frame.
        answers: by client.
        whole: that of the frame for a client that has lost what the usual one starts from.
    """
    entries = []
    for client, tally in tallies.items():
        answer = answers.get(client, Reply(round, client))
        moved = [tally] * (answer.downloads - answer.wholes)
        moved += [whole()] * answer.wholes if answer.wholes else []
        entries += [
            LedgerEntry(round, client, Direction.DOWNLOAD, group, count)
            for one in moved
            for group, count in one.items()
        ]
    return entries


def tally(wire: Wire, frame: bytes) -> dict[str, int]:
    """The bytes of a frame that was packed here, by group."""
    return wire.tally(unpack(frame, max_bytes=len(frame)))


def step(
    algorithm: Algorithm,
    state: Streams,
    updates: list[Update],
    records: list[ClientRecord],
    try_to_send: Callable[[Streams], None],
) -> tuple[Streams, list[Update], list[ClientRecord]]:
    """The state after a round's updates, those that count, and the records.

    All count; or none, and the records say why, if they are fewer than the technique needs, or what comes of them is
    infinite or NaN or larger than downloads can carry: such a state would end the run. No single update may be at
    fault: many large ones have an infinite sum.

    Args:
        algorithm: the technique.
        state: the server's before.
        updates: sound ones.
        records: of all who were asked.
        try_to_send: raises `FrameError` for a state that cannot be sent.
    """
    if not updates:
        return state, updates, records
    if len(updates) < algorithm.server.least:
        reason = f"{len(updates)} updates came, {algorithm.name} needs at least {algorithm.server.least}"
    else:
        made = "infinite or NaN values"
        try:
            new = algorithm.step(state, updates)
            if all(map(is_finite, new.values())):
                try_to_send(new)
                return new, updates, records
        except FrameError as error:
            made = f"what cannot be sent ({error})"
        except (OverflowError, ZeroDivisionError):
            pass
        reason = f"{algorithm.name} made {made} of {len(updates)} updates; a federation.norm_bound keeps large ones out"
    refused = partial(replace, outcome=Outcome.REFUSED, reason=reason)
    return state, [], [refused(one) if one.outcome is Outcome.ACCEPTED else one for one in records]


def check_examples(num_examples: int, client: int, wire: Wire) -> None:
    """Refuses a client that says it has more samples than any may have: means are weighted by what clients say.

    Raises:
        FrameError: it has.
    """
    if wire.max_examples is not None and num_examples > wire.max_examples:
        raise FrameError(
            f"client {client} says it has {num_examples} samples, federation.max_examples is {wire.max_examples}"
        )


def accept(
    reply: Reply | None, algorithm: Algorithm, wire: Wire, round: int, client: int
) -> tuple[Update | None, ClientRecord, dict[str, int]]:
    """Checks one reply; gives the update if it is sound, the record, and the bytes that came."""
    if reply is None:
        return None, ClientRecord(round, client, Outcome.ABSENT, reason="no reply"), {}
    if reply.failure:
        return None, ClientRecord(round, client, reply.outcome, reason=reply.failure), {}
    try:
        expected = len(UPLOAD_SCALARS) + len(algorithm.local.scalars)
        message = wire.read(reply.frame, Kind.UPLOAD, round, client, algorithm.uploads, expected)
        num_examples, num_steps, loss, *own = message.scalars
        counts = all(count.is_integer() and 0 <= count < 2**53 for count in (num_examples, num_steps))
        # What techniques divide by, and raise to powers: lengths of paths, rates, losses.
        sound = math.isfinite(loss) and all(1e-15 <= value <= 1e15 for value in own)
        if not (counts and num_examples >= 1 and sound):
            raise FrameError(
                f"scalars {message.scalars} of client {client} are not counts, a finite loss and numbers from 1e-15 to 1e15"
            )
        check_examples(int(num_examples), client, wire)
        bound = wire.norm_bound or math.inf
        if bound < math.inf and (size := math.hypot(*map(norm, message.streams.values()))) > bound:
            raise FrameError(
                f"update of client {client} has norm {size:.4g}, federation.norm_bound is {bound:g}"
            )
    except FrameError as error:
        refused = ClientRecord(round, client, Outcome.REFUSED, reason=str(error))
        # What was refused has still moved; its groups are unknown, so all of it counts as framing.
        return None, refused, {FRAMING: len(reply.frame)}
    record = ClientRecord(round, client, Outcome.ACCEPTED, int(num_examples), int(num_steps), loss)
    scalars = dict(zip(algorithm.local.scalars, own, strict=True))
    return Update(client, int(num_examples), int(num_steps), message.streams, scalars), record, message.tally

"""The server's side of the exchange before the first round, as a generator that does no I/O."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch

from fedadapt.adapters.class_means import ClassMoments, head_from_moments
from fedadapt.algorithms import Algorithm
from fedadapt.errors import ClientError, FrameError
from fedadapt.federation.frame import Frame, Kind
from fedadapt.federation.messages import EVERYONE, Reply, Request
from fedadapt.federation.round import Played, check_examples, downloaded, first_answers
from fedadapt.federation.versions import Track, Version
from fedadapt.federation.warm_start import CODEC, KEY, ROUND, WarmStart
from fedadapt.params import Group, Params, is_finite
from fedadapt.runs.records import FRAMING, ClientRecord, Direction, LedgerEntry, Outcome


def play_warm_start(
    warm: WarmStart, algorithm: Algorithm, cohort: Sequence[int]
) -> Generator[list[Request], Sequence[Reply], Played]:
    """Plays the exchange, and begins the algorithm with the head that comes of it.

    Args:
        warm: what is asked for.
        algorithm: the technique.
        cohort: whom to ask.

    Yields:
        One list of requests; the driver sends back the replies.

    Returns:
        The first state and the records; an empty state if nobody's moments were accepted.

    Raises:
        ClientError: no head can be made of what came.
    """
    wire = warm.wire
    frame = Frame(Kind.DOWNLOAD, ROUND, EVERYONE, wire.identity, (), ()).pack()
    replies = yield [Request(ROUND, client, frame) for client in cohort]
    answers, strays = first_answers(replies, ROUND, cohort)
    ledger = downloaded(ROUND, {c: {FRAMING: len(frame)} for c in cohort}, answers) + strays
    total: ClassMoments | None = None
    loudest, size = -1, -1.0
    records: list[ClientRecord] = []
    for client in sorted(cohort):
        moments, record, received = _accept(warm, answers.get(client), client)
        records.append(record)
        ledger += [LedgerEntry(ROUND, client, Direction.UPLOAD, group, n) for group, n in received.items()]
        if moments is not None:
            total = moments if total is None else total + moments
            own = float(moments.square / moments.counts.sum())
            loudest, size = (client, own) if own > size else (loudest, size)
    if total is None:
        return Played({}, tuple(records), tuple(ledger))
    try:
        weight, bias = head_from_moments(total, shrinkage=warm.means.shrinkage)
    except ClientError as error:
        # Each party's moments are possible by themselves; one that lies may still outweigh all others.
        raise ClientError(
            f"{error}; the largest features are those of client {loudest}, {size**0.5:.3g} long on average"
        ) from error
    start = {name: warm.model.start[name].cpu() for name in wire.plan.layout()}
    state = algorithm.init(_cloned(start) | dict(zip(warm.head, (weight, bias), strict=True)))
    if wire.delta:
        # Clients make the start by themselves; the first download is the step from there to this state.
        common = algorithm.init(_cloned(start))
        known = Version(ROUND, {stream: common[stream] for stream in algorithm.downloads})
        state = state | Track(known, {}, {}).to_streams()
    return Played(state, tuple(records), tuple(ledger))


def _cloned(params: Params) -> Params:
    return {name: tensor.clone() for name, tensor in params.items()}


def _accept(
    warm: WarmStart, reply: Reply | None, client: int
) -> tuple[ClassMoments | None, ClientRecord, dict[str, int]]:
    """Checks one reply; gives the moments if they are sound, the record, and the bytes that came."""
    if reply is None:
        return None, ClientRecord(ROUND, client, Outcome.ABSENT, reason="no reply"), {}
    if reply.failure:
        return None, ClientRecord(ROUND, client, reply.outcome, reason=reply.failure), {}
    try:
        wire = replace(warm.wire, max_bytes=warm.message_bytes["upload"])
        frame = wire.open(reply.frame, Kind.UPLOAD, ROUND, client, 1)
        if len(frame.sections) != 1 or frame.scalars:
            raise FrameError(
                f"frame has {len(frame.sections)} sections and {len(frame.scalars)} scalars, expected 1 and 0"
            )
        moments = CODEC.decode(frame.sections[0], warm.layout, KEY)
        found = _check(moments, client)
        check_examples(int(moments["counts"].sum()), client, wire)
    except FrameError as error:
        refused = ClientRecord(ROUND, client, Outcome.REFUSED, reason=str(error))
        return None, refused, {FRAMING: len(reply.frame)}
    record = ClientRecord(ROUND, client, Outcome.ACCEPTED, int(moments["counts"].sum()))
    received = {Group.HEAD.value: len(frame.sections[0]), FRAMING: frame.num_framing_bytes}
    return found, record, received


def _check(moments: Params, client: int) -> ClassMoments:
    counts = moments["counts"]
    if not is_finite(moments):
        raise FrameError(f"class means of client {client} hold infinite or NaN values")
    sound = (counts >= 0) & (counts == counts.round()) & (counts < 2**53)
    if not (bool(sound.all()) and bool(counts.any())):
        raise FrameError(f"class means of client {client} are over {counts.tolist()} samples, not counts")
    sums = moments["sums"].double()
    least = float((sums.square().sum(1) / counts.double().clamp(min=1)).sum())
    # Features vary within a class or do not; they cannot vary less. A little is for rounding to fp32.
    if bool(sums[counts == 0].any()) or float(moments["square"]) < (1 - 1e-5) * least:
        raise FrameError(
            f"class means of client {client} are no sums over its samples (a class without samples has some, or squares sum to "
            f"{float(moments['square']):.4g}, where those of the means alone come to {least:.4g})"
        )
    found = ClassMoments.from_params(moments)
    if found.products is None:
        return found
    within = found.products - (found.sums.T / found.counts.clamp(min=1)) @ found.sums
    slack = max(1e-5 * float(found.square), 1e-30)
    within.diagonal().add_(slack)
    apart = abs(float(found.products.trace() - found.square))
    if apart > slack or int(torch.linalg.cholesky_ex(within).info):
        raise FrameError(
            f"class means of client {client} hold products that features of no samples have: their diagonal is {apart:.4g} off "
            "the sum of squares, or in some direction they vary less than not at all"
        )
    return found

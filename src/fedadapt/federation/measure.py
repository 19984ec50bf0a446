"""The exchange that ends a round between sites: each takes the new model, and says how good it is on its own samples.

The request is the download of the next round, ahead of it. The answer is a frame without sections, whose scalars are
how many samples the site measured on, and what it found. In a simulation all samples are at hand and nothing is sent.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedadapt.algorithms import Algorithm
from fedadapt.data.dataset import Split
from fedadapt.errors import FrameError
from fedadapt.federation.frame import Frame, Kind
from fedadapt.federation.messages import Reply, Request, Wire
from fedadapt.federation.round import Played, downloaded, downloads, first_answers, tally
from fedadapt.federation.serve import Party, completed, predicting, reader
from fedadapt.runs.records import FRAMING, Direction, LedgerEntry, Outcome
from fedadapt.training.evaluate import Scores, evaluate, is_known
from fedadapt.training.metrics import NAMES


@dataclass(frozen=True)
class Measured:
    """What the sites said.

    Args:
        scores: by client, of those that have held-out samples.
        failures: by client that was there, in one line.
        ledger: every byte that moved.
    """

    scores: Mapping[int, Scores]
    failures: Mapping[int, str]
    ledger: tuple[LedgerEntry, ...]


def play_measure(
    algorithm: Algorithm, wire: Wire, played: Played, round: int, cohort: Sequence[int]
) -> Generator[list[Request], Sequence[Reply], Measured]:
    """Has sites take what a round came to, and measure it. Who is not there is not waited for.

    Args:
        algorithm: the technique.
        wire: how to write and read frames.
        played: the round, which is not on disk yet.
        round: its number.
        cohort: whom to ask.

    Yields:
        One list of requests; the driver sends back the replies.
    """
    if not cohort:
        return Measured({}, {}, ())
    # No version is noted: the next round sends the same step again, so that a site may as well have missed this one.
    frames, _ = downloads(algorithm, wire, played.state, round + 1, cohort)
    tallies = {id(frame): tally(wire, frame) for frame in frames.values()}
    counted = {r.client for r in played.clients if r.outcome is Outcome.ACCEPTED}
    asked = [
        Request(round + 1, c, frames[c], measure=True, accepted=round if c in counted else None)
        for c in cohort
    ]
    answers, strays = first_answers((yield asked), round + 1, cohort, measure=True)
    sent = {client: tallies[id(frame)] for client, frame in frames.items()}
    moved = [*downloaded(round + 1, sent, answers), *strays]
    scores, failures = dict[int, Scores](), dict[int, str]()
    for client, answer in sorted(answers.items()):
        if answer.frame:
            moved.append(LedgerEntry(round, client, Direction.UPLOAD, FRAMING, len(answer.frame)))
        try:
            if answer.failure:
                raise FrameError(answer.failure)
            found = _read(wire, answer)
        except FrameError as error:
            if answer.outcome is not Outcome.ABSENT:
                failures[client] = str(error)
            continue
        if found:
            scores[client] = found
    return Measured(scores, failures, tuple(replace(entry, round=round) for entry in moved))


def answer_measure(request: Request, party: Party, held_out: Split) -> Reply:
    """A site's answer: how good the model is that it would predict with, after it took the new one.

    Args:
        request: holds the new model.
        party: who answers; it remembers what it took, if downloads are steps.
        held_out: what is measured on; if it is empty nothing is.
    """
    client = request.client
    try:
        shared = reader(party)(request)["model"]
    except FrameError as error:
        return Reply(request.round, client, failure=str(error), measure=True)
    own = predicting(party.algorithm, completed(party.model, shared), party.memory.get(client, {}))
    found = evaluate(party.model, own, held_out, party.mean, party.std) if len(held_out) else {}
    scalars = (float(len(held_out)), *(found.get(name, math.nan) for name in NAMES))
    frame = Frame(Kind.UPLOAD, request.round, client, party.wire.identity, scalars, ())
    return Reply(request.round, client, frame.pack(), measure=True)


def _read(wire: Wire, reply: Reply) -> Scores:
    """What a site found; nothing if it has no samples to measure on.

    Raises:
        FrameError: it cannot have found that.
    """
    frame = wire.open(reply.frame, Kind.UPLOAD, reply.round, reply.client, 1)
    if frame.sections or len(frame.scalars) != 1 + len(NAMES):
        raise FrameError(
            f"frame has {len(frame.sections)} sections and {len(frame.scalars)} scalars, expected 0 and {1 + len(NAMES)}"
        )
    num_examples, *values = frame.scalars
    found = {name: value for name, value in zip(NAMES, values, strict=True) if is_known(name, value)}
    # A loss that is no number is a finding.
    shares = all(0 <= v <= (math.inf if name == "loss" else 1) or math.isnan(v) for name, v in found.items())
    if not (num_examples.is_integer() and 0 <= num_examples < 2**53 and shares):
        raise FrameError(f"scalars {frame.scalars} of client {reply.client} are not a count and measures")
    return found if num_examples else {}

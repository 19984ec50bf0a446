"""Asynchronous federation as a generator that does no I/O: clients come and go, the server steps when a buffer is full.

A round is one step of the server. Between rounds some clients are still at work, on models of earlier rounds; their
uploads are part of the state, as the bytes that will arrive, so that a run can stop and go on anywhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedadapt.algorithms import Algorithm, Update
from fedadapt.federation.drift import measure_drift
from fedadapt.federation.frame import Kind, unpack
from fedadapt.federation.messages import EVERYONE, Reply, Request, Wire
from fedadapt.federation.population import Population
from fedadapt.federation.round import Played, accept, downloaded, first_answers, step, try_to_send
from fedadapt.params import Params, Streams
from fedadapt.runs.records import ClientRecord, Direction, LedgerEntry, Outcome

CLOCK = "clock"
"""The stream of the state that holds the time."""

FLIGHT = "flight"
"""The stream that holds what is on its way: for each client round and time of arrival, then its frame, byte by byte."""

MAX_ARRIVALS = 16
"""Clients that a round waits for, for each update that it wants."""

_PATIENCE = 64
"""How often a client that is free is looked for before all are looked at."""


@dataclass(frozen=True, order=True)
class _Job:
    """A client at work.

    Args:
        arrives: when its upload comes.
        client: its number.
        round: whose model it got.
        reply: what will come.
    """

    arrives: float
    client: int
    round: int
    reply: Reply | None = None


def play_buffered(
    algorithm: Algorithm,
    wire: Wire,
    state: Streams,
    round: int,
    population: Population,
) -> Generator[list[Request], Sequence[Reply], Played]:
    """Plays until the buffer is full, and takes one step.

    A cohort of clients is at work at any time. How long each takes is drawn from a seeded clock, ``|z|`` with z
    standard normal, times the pace of the client; whenever one arrives another one starts, on the model of this round.
    A client is asked at most once a round. If so many fail that the buffer is not full after `MAX_ARRIVALS` for each
    update wanted, or nobody is left to ask, the step is taken with what there is.

    Args:
        algorithm: the technique; its server says how many updates fill the buffer.
        wire: how to write and read frames.
        state: the server's before the round.
        round: counted from 1.
        population: who there is, and how many are at work at a time.

    Yields:
        Lists of requests, usually one; the driver sends back the replies.

    Returns:
        The new state, what is on its way included, and the round's records.

    Source:
        J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, *Federated Learning with Buffered
        Asynchronous Aggregation*, AISTATS 2022, algorithm 1.
    """
    wanted = algorithm.server.buffer or 1
    frame = wire.write(Kind.DOWNLOAD, round, EVERYONE, {s: state[s] for s in algorithm.downloads}, ())
    sent = wire.tally(unpack(frame, max_bytes=len(frame)))
    now, working = _take_off(state)
    concurrency, draw = population.cohort, _Draw(population, round, {job.client for job in working})
    updates: list[Update] = []
    records: list[ClientRecord] = []
    ledger: list[LedgerEntry] = []
    while len(updates) < wanted and len(records) < MAX_ARRIVALS * wanted:
        # The clock first: who starts and who arrives does not depend on what they send, so that all who start on this
        # model train together.
        starting: list[int] = []
        arrived: list[_Job] = []
        while len(arrived) < wanted - len(updates):
            while len(working) < concurrency and (client := draw.client()) is not None:
                starting.append(client)
                heapq.heappush(working, _Job(now + draw.duration(client), client, round))
            if not working:
                break
            job = heapq.heappop(working)
            now = job.arrives
            arrived.append(job)
        came = yield [Request(round, client, frame) for client in starting]
        replies, strays = first_answers(came, round, starting)
        ledger += downloaded(round, dict.fromkeys(starting, sent), replies) + strays
        working = [replace(job, reply=replies.get(job.client, job.reply)) for job in working]
        heapq.heapify(working)
        for job in arrived:
            update, record, received = accept(
                replies.get(job.client, job.reply), algorithm, wire, job.round, job.client
            )
            records.append(replace(record, round=round))
            ledger += [LedgerEntry(round, job.client, Direction.UPLOAD, g, n) for g, n in received.items()]
            if update is not None:
                updates.append(replace(update, staleness=round - job.round))
        if not arrived:
            break
    updates.sort(key=lambda update: update.client)
    records.sort(key=lambda record: record.client)
    kept = {stream: params for stream, params in state.items() if stream not in (CLOCK, FLIGHT)}
    new, updates, records = step(
        algorithm, kept, updates, records, lambda new: try_to_send(algorithm, wire, new, round + 1, None)
    )
    drift = measure_drift(updates, algorithm.moving)
    return Played(new | _land(now, working), tuple(records), tuple(ledger), drift)


class _Draw:
    """Who starts next in a round, and how long it takes, from seeds by round and client."""

    def __init__(self, population: Population, round: int, busy: set[int]) -> None:
        self._population, self._round = population, round
        self._num_clients = population.pool.num_clients
        self._used = set(busy)
        self._generator = population.seeds.numpy("dispatch", round=round)

    def client(self) -> int | None:
        """A client that is neither at work nor was asked in this round; None if there is none."""
        if len(self._used) >= self._num_clients:
            return None
        for _ in range(_PATIENCE):
            client = int(self._generator.integers(self._num_clients))
            if client not in self._used:
                break
        else:
            free = [c for c in range(self._num_clients) if c not in self._used]
            client = free[int(self._generator.integers(len(free)))]
        self._used.add(client)
        return client

    def duration(self, client: int) -> float:
        """How long a client is at work."""
        generator = self._population.seeds.numpy("duration", round=self._round, client=client)
        return abs(float(generator.standard_normal())) * self._population.pace(client)


def _land(now: float, working: Sequence[_Job]) -> Streams:
    """The clock and what is on its way, as tensors. What failed lands as a frame of no bytes, with its reason."""
    flight: Params = {}
    for job in sorted(working):
        reply = job.reply or Reply(job.round, job.client, failure="no reply", outcome=Outcome.ABSENT)
        when = torch.tensor([float(job.round), job.arrives], dtype=torch.float64)
        flight[f"{job.client}.when"] = when
        flight[f"{job.client}.frame"] = _bytes(reply.frame)
        flight[f"{job.client}.failure"] = _bytes(reply.failure.encode())
        flight[f"{job.client}.outcome"] = _bytes(reply.outcome.encode())
    return {CLOCK: {"now": torch.tensor(now, dtype=torch.float64)}, FLIGHT: flight}


def _take_off(state: Streams) -> tuple[float, list[_Job]]:
    """The inverse of `_land`; before the first round nothing is on its way."""
    if CLOCK not in state:
        return 0.0, []
    flight, working = state[FLIGHT], []
    for name in flight:
        client, part = name.rsplit(".", 1)
        if part == "when":
            round_, arrives = flight[name].tolist()
            body = flight[f"{client}.frame"].numpy().tobytes()
            failure, outcome = (
                flight[f"{client}.{part}"].numpy().tobytes().decode() for part in ("failure", "outcome")
            )
            reply = Reply(int(round_), int(client), body, failure, Outcome(outcome))
            working.append(_Job(arrives, int(client), int(round_), reply))
    heapq.heapify(working)
    return float(state[CLOCK]["now"]), working


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)

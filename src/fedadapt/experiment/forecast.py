"""What a run will train and send, known before it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedadapt.experiment.build import Experiment
from fedadapt.federation.frame import Kind, framing_bytes
from fedadapt.federation.messages import Wire
from fedadapt.federation.plan import Travel
from fedadapt.federation.serve import UPLOAD_SCALARS
from fedadapt.federation.versions import WHOLE, Track, Version
from fedadapt.params import Group
from fedadapt.runs.records import ClientRecord, Outcome

MAX_FORETOLD = 10**6
"""Longer runs, in client rounds, are not played through."""

_STEP_SCALARS = 2


def forecast(experiment: Experiment) -> dict[str, Any]:
    """The exchange plan in numbers, as plain JSON values, if as many clients answer as are wanted.

    Returns:
        ``groups``: for each group what happens to it, its tensors and values, and the bytes of it in one
        upload; ``message_bytes``: of one download to a client that was there in the round before and one upload,
        framing included, in the last round; ``round_bytes``: of all clients of that round, each way;
        ``first_bytes``: of the exchange before the first round, each way, 0 if there is none; ``run_bytes``: of the
        whole run, both ways; ``full_model_bytes``: of the plain network as fp32, and ``share``: what one download
        is of it;
        ``backbone``: its name, digest, bytes, and what a party fetches once; ``clients_seen``: how many will be
        asked at least once; ``ratio``: how many times the bytes full fine-tuning in fp32 would move in the same
        rounds, in a round, in the run, and in the run with the backbone for every client seen. What depends on
        the values, or on more than a million client rounds, is None.
    """
    config, plan, wire = experiment.config, experiment.plan, experiment.wire
    last = config.rounds
    sizes = section_bytes(wire, Kind.UPLOAD, last)
    cohort, asks = experiment.population.cohort, experiment.population.asks
    scalars = len(UPLOAD_SCALARS) + len(experiment.algorithm.local.scalars)
    messages = {
        "download": message_bytes(wire, Kind.DOWNLOAD, len(experiment.algorithm.downloads), 0, last),
        "upload": message_bytes(wire, Kind.UPLOAD, len(experiment.algorithm.uploads), scalars, last),
    }
    counts = {"download": asks, "upload": cohort}
    rounds = {way: None if size is None else counts[way] * size for way, size in messages.items()}
    down, seen = _downloads(experiment)
    up = _over_rounds(wire, Kind.UPLOAD, [cohort] * config.rounds, len(experiment.algorithm.uploads), scalars)
    first = {
        way: experiment.population.pool.num_clients * size for way, size in _first_message(experiment).items()
    }
    run = None if down is None or up is None else down + up + sum(first.values())
    full = 4 * experiment.backbone.num_parameters
    full_round = asks * (full + framing_bytes(0, 3)) + cohort * (full + framing_bytes(len(UPLOAD_SCALARS), 3))
    once = experiment.bytes_once
    with_backbone = None if run is None or seen is None else run + seen * once
    both = None if None in rounds.values() else sum(size or 0 for size in rounds.values())
    return {
        "run": config.name,
        "adapter": config.adapter.name,
        "algorithm": experiment.algorithm.name,
        "codec": wire.codec.name,
        "delta": wire.delta,
        "clients": config.data.num_clients,
        "clients_seen": seen,
        "cohort": cohort,
        "rounds": config.rounds,
        "groups": [
            {
                "group": s.group.value,
                "trained": s.trained,
                "travels": s.travel.value,
                "tensors": s.num_tensors,
                "values": s.num_values,
                "bytes": sizes[s.group] if s.travel is Travel.SHARED else 0,
            }
            for s in plan.summary()
        ],
        "message_bytes": messages,
        "round_bytes": rounds,
        "first_bytes": first,
        "run_bytes": run,
        "full_model_bytes": full,
        "share": None if messages["download"] is None else messages["download"] / full,
        "ratio": {
            "round": None if both is None else full_round / both,
            "run": None if run is None else config.rounds * full_round / run,
            "run_with_backbone": None
            if with_backbone is None
            else config.rounds * full_round / with_backbone,
        },
        "backbone": {
            "name": experiment.backbone.name,
            "digest": experiment.backbone.digest,
            "bytes": experiment.backbone.num_bytes,
            "once": once,
        },
    }


def section_bytes(wire: Wire, kind: Kind, round: int) -> dict[Group, int | None]:
    """The bytes of a section of each group; None where they depend on the values."""
    return {
        group: wire.codec_of(kind, group).num_bytes(wire.plan.layout(group), round)
        for group in wire.plan.groups()
    }


def message_bytes(wire: Wire, kind: Kind, num_streams: int, num_scalars: int, round: int = 1) -> int | None:
    """The bytes of a frame of a round; of a download as a step, that of one step."""
    sizes = section_bytes(wire, kind, round)
    known = [size for size in sizes.values() if size is not None]
    if len(known) < len(sizes):
        return None
    num_scalars += _STEP_SCALARS if wire.delta and kind is Kind.DOWNLOAD else 0
    return num_streams * sum(known) + framing_bytes(num_scalars, num_streams * len(sizes))


def _first_message(experiment: Experiment) -> dict[str, int]:
    """Bytes of each client's part in the exchange before the first round."""
    warm = experiment.warm
    return {"download": 0, "upload": 0} if warm is None else warm.message_bytes


def _over_rounds(
    wire: Wire, kind: Kind, counts: Sequence[int], num_streams: int, num_scalars: int
) -> int | None:
    """Bytes of so many messages in each round, over the run; None if they depend on the values."""
    sizes = [
        (count, message_bytes(wire, kind, num_streams, num_scalars, number))
        for number, count in enumerate(counts, 1)
    ]
    known = [count * size for count, size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _downloads(experiment: Experiment) -> tuple[int | None, int | None]:
    """Bytes of all downloads of the run, and how many clients are asked; each None if it cannot be told."""
    population, wire, rounds = experiment.population, experiment.wire, experiment.config.rounds
    counts, clients = [population.asks] * rounds, population.pool.num_clients
    seen: int | None = None
    if population.asks == clients and population.sampling.even:
        seen = clients
    elif sum(counts) <= MAX_FORETOLD:
        chosen = [population.asked(number) for number in range(1, rounds + 1)]
        counts, seen = list(map(len, chosen)), len(set().union(*chosen))
    if experiment.warm is not None:
        seen = clients
    whole = _over_rounds(wire, Kind.DOWNLOAD, counts, len(experiment.algorithm.downloads), 0)
    if whole is None or (wire.delta and sum(counts) > MAX_FORETOLD):
        return None, seen
    return _steps(experiment) if wire.delta else whole, seen


def _steps(experiment: Experiment) -> int:
    """Bytes of all downloads as steps, by keeping the server's books over packets of the right sizes."""
    streams = {stream: dict(experiment.model.start) for stream in experiment.algorithm.downloads}
    streams = {s: {n: t for n, t in p.items() if n in experiment.plan.layout()} for s, p in streams.items()}
    empty = (b"",) * (len(streams) * len(experiment.plan.groups()))
    # The first model is the one that every client starts from, but for a head that the server has started.
    begun = {("model", Group.HEAD)} if experiment.warm is not None else set()
    whole = 4 * sum(tensor.numel() for params in streams.values() for tensor in params.values())
    track, total = Track(Version(0, streams), {}, {}), 0
    for number in range(1, experiment.config.rounds + 1):
        sizes = section_bytes(experiment.wire, Kind.DOWNLOAD, number)
        moved = {(s, g): number > 1 or (s, g) in begun for s in streams for g in sizes}
        step = tuple(bytes((moved[s, g] and sizes[g]) or 0) for s in streams for g in sizes)
        track = track.extended(Version(number, streams), step)
        asked = experiment.population.asked(number)
        for base, count in Counter(track.base(client) for client in asked).items():
            steps = [] if base == WHOLE else [track.steps[n] for n in range(base + 1, number + 1)]
            num_bytes = whole if base == WHOLE else sum(len(section) for one in steps for section in one)
            total += count * (num_bytes + framing_bytes(_STEP_SCALARS, len(empty) * max(1, len(steps))))
        track = track.after([ClientRecord(number, client, Outcome.ACCEPTED) for client in asked])
    return total

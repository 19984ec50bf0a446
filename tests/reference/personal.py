"""Techniques with something of each client's own: FedPer, FedRep, Ditto, PerAda and APFL."""

from __future__ import annotations

from types import SimpleNamespace

from reference import fedavg

from fedadapt.params import Group

PULL, ALPHA = 0.4, 0.3


def _whole(client):
    """What it got, and the head that it kept or starts with."""
    start = client.party.model.start
    head = {n: start[n].clone() for n in start if client.party.model.groups[n] is Group.HEAD}
    return client.start | client.memory.get("kept", head)


def _split(client, params):
    """What is sent and what is kept."""
    names = client.download["model"]
    sent = {n: t - names[n] for n, t in params.items() if n in names}
    return {"delta": sent}, {"kept": {n: t for n, t in params.items() if n not in names}}


def _fedper(client):
    params, steps = _whole(client), 0
    for batch in client.batches():
        gradient = client.gradient(params, batch)
        params = {n: t - client.lr * gradient[n] for n, t in params.items()}
        steps += 1
    return *_split(client, params), {}, steps


def _fedrep(client):
    params, steps = _whole(client), 0
    body = set(client.download["model"])
    for batch in client.batches(epochs=1):
        gradient = client.gradient(params, batch)
        params = {n: t if n in body else t - client.lr * gradient[n] for n, t in params.items()}
        steps += 1
    rest = client.party.train.epochs - 1
    for batch in client.batches(epochs=rest, purpose="batches of phase 1"):
        gradient = client.gradient(params, batch)
        params = {n: t - client.lr * gradient[n] if n in body else t for n, t in params.items()}
        steps += 1
    return *_split(client, params), {}, steps


def _beside(client, groups, direction):
    """Two models side by side; `direction` of the own one sees both as they were before the step."""
    shared, steps = client.start, 0
    fresh = {n: t for n, t in client.party.model.start.items() if client.party.model.groups[n] in groups}
    own = client.memory.get("personal", fresh)
    for batch in client.batches():
        plain, along = client.gradient(shared, batch), direction(client, own, shared, batch)
        shared = {n: t - client.lr * plain[n] for n, t in shared.items()}
        own = {n: t - client.lr * along[n] for n, t in own.items()}
        steps += 1
    return {"delta": client.difference(shared)}, {"personal": own}, {}, steps


def _to_global(client, own, shared, batch):
    gradient = client.gradient(shared | own, batch)
    return {n: gradient[n] + PULL * (t - client.download["model"][n]) for n, t in own.items()}


def _mixture(client, own, shared, batch):
    mixed = {n: ALPHA * t + (1 - ALPHA) * shared[n] for n, t in own.items()}
    return {n: ALPHA * g for n, g in client.gradient(mixed, batch).items()}


def _make(client):
    return SimpleNamespace(client=client, step=fedavg.step)


fedper = _make(_fedper)
fedrep = _make(_fedrep)
ditto = _make(lambda client: _beside(client, set(Group), _to_global))
perada = _make(lambda client: _beside(client, {Group.ADAPTER}, _to_global))
apfl = _make(lambda client: _beside(client, set(Group), _mixture))

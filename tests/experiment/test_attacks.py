"""Attackers in a simulation: who they are, what of them the server sees, and what nobody else notices."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import tiny_model, tiny_party
from tiny import StopAfter, Stopped, outcome, tiny

from fedadapt.engines.hostile import HostileEngine
from fedadapt.engines.local import LocalEngine
from fedadapt.errors import ConfigError
from fedadapt.experiment import resume, run
from fedadapt.experiment.build import build
from fedadapt.experiment.federated import begin
from fedadapt.federation.attacks import choose_attackers
from fedadapt.federation.frame import Kind
from fedadapt.federation.round import play
from fedadapt.federation.serve import UPLOAD_SCALARS
from fedadapt.registry import create, names
from fedadapt.runs.records import Outcome
from fedadapt.runs.store import RunStore
from fedadapt.seeds import Seeds

ATTACKED = ("attack.share=0.5", "data.limit=48", "rounds=2")
"""Two of the tiny run's four clients."""


def read_upload(party, reply):
    """What the server finds in a reply."""
    scalars = len(UPLOAD_SCALARS) + len(party.algorithm.local.scalars)
    return party.wire.read(
        reply.frame, Kind.UPLOAD, reply.round, reply.client, party.algorithm.uploads, scalars
    )


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_only_attackers_lie_and_only_in_tensors(algorithm):
    """Uploads of attackers are minus twice the honest ones in every stream, all else is bit for bit the same."""
    party = tiny_party(tiny_model("head"), sizes=(4, 4, 4), algorithm=create("algorithm", algorithm))
    flow = play(party.algorithm, party.wire, party.algorithm.init(
        {n: party.model.start[n].clone() for n in party.wire.plan.layout()}
    ), 1, [0, 1, 2])  # fmt: skip
    requests = next(flow)
    honest = LocalEngine(party).exchange(requests)
    attack = create("attack", "sign_flip", {"factor": 2.0})
    engine = HostileEngine(LocalEngine(party, 2), party.wire, party.algorithm, {1}, attack.upload)
    party.memory.clear()
    seen = []
    engine.on_clients = seen.append
    hostile = engine.exchange(requests)
    assert seen == [2, 3]
    for reply, before in zip(hostile, honest, strict=True):
        if reply.client != 1:
            assert reply == before
            continue
        lie, truth = read_upload(party, reply), read_upload(party, before)
        assert lie.scalars == truth.scalars
        for stream, params in truth.streams.items():
            assert all(torch.equal(lie.streams[stream][name], -2 * t) for name, t in params.items())
    with pytest.raises(StopIteration) as stop:
        flow.send(hostile)
    assert {record.outcome for record in stop.value.value.clients} == {Outcome.ACCEPTED}


def test_a_lie_that_is_not_finite_is_refused(tmp_path):
    """A factor past the largest number is found by the server, and costs the attackers alone."""
    path = run(tiny("attack=scaled", "attack.factor=1e39", *ATTACKED), tmp_path)
    attackers = build(tiny("attack=scaled", *ATTACKED)).attackers
    with RunStore.read(path) as store:
        for record in store.clients():
            assert (record.outcome is Outcome.ACCEPTED) == (record.client not in attackers), record


@pytest.mark.parametrize("attack", [name for name in names("attack") if name != "none"])
def test_an_attacked_run_is_worse_and_resumes(tmp_path, attack):
    """Whatever the attack: another model than without it, the same bits after a stop, and the same bytes moved."""
    settings = (f"attack={attack}", *ATTACKED)
    whole = outcome(run(tiny(*settings), tmp_path / "whole"))
    with pytest.raises(Stopped):
        run(tiny(*settings), tmp_path / "stopped", watcher=StopAfter(1))
    assert outcome(resume(tmp_path / "stopped" / "tiny")) == whole
    honest = outcome(run(tiny(*ATTACKED[1:]), tmp_path / "honest"))
    assert whole["state"] != honest["state"]
    assert whole["ledger"] == honest["ledger"]


def test_flipped_labels_are_those_of_attackers_alone():
    """Attackers train on 9 - c; what others train on, though it be the same samples, is as it was."""
    settings = ("attack=label_flip", *ATTACKED, 'data.partition={name = "virtual", size = 20}')
    experiment = build(tiny(*settings))
    labels, party = experiment.dataset.train.labels, experiment.party({})
    assert len(experiment.attackers) == 2
    for client in range(4):
        own, trained = experiment.clients.train[client], party.indices[client]
        expected = 9 - labels[own] if client in experiment.attackers else labels[own]
        assert torch.equal(party.split.labels[trained], expected)
        assert torch.equal(party.split.images[trained], experiment.dataset.train.images[own])
        assert party.indices.size(client) == len(own)


def test_a_share_is_that_many_clients():
    """29 % of 100 are 29, however the product rounds; they follow from the seed alone, and nobody is an error."""
    chosen = choose_attackers(100, 0.29, Seeds(1))
    assert len(chosen) == 29
    assert chosen <= set(range(100))
    assert chosen == choose_attackers(100, 0.29, Seeds(1)) != choose_attackers(100, 0.29, Seeds(2))
    with pytest.raises(ConfigError, match=r"of 4 clients that is nobody; use 0\.25 or more"):
        choose_attackers(4, 0.2, Seeds(0))


def test_sites_are_not_told_to_lie(tmp_path):
    """A federation between sites refuses a recipe with an attack, and leaves nothing behind."""
    with pytest.raises(ConfigError, match="attack is 'sign_flip', but sites are what they are"):
        begin(tiny("attack=sign_flip"), tmp_path)
    assert not list(tmp_path.iterdir())

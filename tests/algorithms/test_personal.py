"""Personal models: what they are at the ends of their range, where they live, and what a client predicts with."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import federate, tiny_model, tiny_party

from fedadapt.federation.serve import KEPT, PERSONAL, predicting
from fedadapt.params import Group
from fedadapt.registry import create

SIZES = (6, 9, 4)


def play(name, options=None, *, rounds=1, adapter="parallel", norms="frozen", **train):
    """The party and the last state after some rounds of three clients."""
    algorithm = create("algorithm", name, options or {})
    party = tiny_party(tiny_model(adapter, norms), sizes=SIZES, algorithm=algorithm, **train)
    states = federate(party, [range(3)] * rounds)
    return party, states[-1]["model"]


def test_without_a_pull_a_personal_model_trains_alone():
    """Over three rounds it is, up to rounding, one client's own three rounds with nobody else, momentum aside."""
    party, _ = play("ditto", {"pull": 0.0}, rounds=3, momentum=0.0)
    for client in range(3):
        alone = tiny_party(tiny_model("parallel"), sizes=SIZES, momentum=0.0)
        end = federate(alone, [[client]] * 3)[-1]["model"]
        for name, tensor in party.memory[client][PERSONAL].items():
            torch.testing.assert_close(tensor, end[name], rtol=1e-3, atol=1e-5)


def test_a_strong_pull_holds_the_personal_model_at_the_global_one():
    """At lr * pull = 1 every step starts from the global model again."""
    party, _ = play("ditto", {"pull": 20.0}, momentum=0.0, lr=0.05)
    loose, _ = play("ditto", {"pull": 0.0}, momentum=0.0, lr=0.05, epochs=3)
    start = party.model.start
    for client in range(3):
        near, far = (
            sum(float((p.memory[client][PERSONAL][n] - t).square().sum()) for n, t in start.items())
            for p in (party, loose)
        )
        assert 0 < near < far


def test_a_mixture_that_is_all_personal_trains_alone():
    """APFL at alpha 1 is Ditto without a pull."""
    mixed, shared = play("apfl", {"alpha": 1.0}, rounds=2)
    alone, other = play("ditto", {"pull": 0.0}, rounds=2)
    for client in range(3):
        for name, tensor in mixed.memory[client][PERSONAL].items():
            torch.testing.assert_close(tensor, alone.memory[client][PERSONAL][name], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(tensor, other[name]) for name, tensor in shared.items())


def test_what_a_client_predicts_with():
    """Nothing of its own: the global model. A mixture: a quarter of 8 and three quarters of 4 is 5."""
    shared = {"w": torch.tensor([4.0]), "b": torch.tensor([1.0])}
    own = {PERSONAL: {"w": torch.tensor([8.0])}}
    assert predicting(create("algorithm", "fedavg"), shared, {}) == shared
    apfl = create("algorithm", "apfl", {"alpha": 0.25})
    assert {n: t.item() for n, t in predicting(apfl, shared, own).items()} == {"w": 5.0, "b": 1.0}
    assert predicting(apfl, shared, {}) == shared
    ditto = create("algorithm", "ditto")
    assert predicting(ditto, shared, own)["w"].item() == 8.0
    kept = {KEPT: {"b": torch.tensor([7.0])}}
    assert predicting(create("algorithm", "fedper"), shared, kept)["b"].item() == 7.0


def test_personal_adapters_are_only_adapters():
    """What PerAda keeps is the adapter group, and it differs from client to client."""
    party, _ = play("perada", {"pull": 0.01})
    adapters = {n for n, g in party.model.groups.items() if g is Group.ADAPTER}
    assert all(set(party.memory[client][PERSONAL]) == adapters for client in range(3))
    name = min(adapters)
    assert not torch.equal(party.memory[0][PERSONAL][name], party.memory[1][PERSONAL][name])


@pytest.mark.parametrize(("name", "epochs"), [("fedper", 1), ("fedrep", 2)])
def test_a_kept_head_never_travels(name, epochs):
    """It is in no message and not in the server's state, and each client's own is remembered."""
    party, shared = play(name, epochs=epochs)
    heads = [n for n, g in party.model.groups.items() if g is Group.HEAD]
    assert not set(heads) & set(shared)
    assert Group.HEAD not in party.wire.plan.groups()
    assert all(set(party.memory[client][KEPT]) == set(heads) for client in range(3))


@pytest.mark.parametrize("norms", ["frozen", "local"])
def test_personal_statistics_do_not_move_the_shared_ones(norms):
    """Beside a personal model the shared one is trained as without it, its running statistics included."""
    with_own, model = play("perada", {"pull": 0.1}, norms=norms)
    without, plain = play("fedavg", norms=norms)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.items())
    for client in range(3 if norms == "local" else 0):
        for name, tensor in without.memory[client][KEPT].items():
            assert torch.equal(with_own.memory[client][KEPT][name], tensor)

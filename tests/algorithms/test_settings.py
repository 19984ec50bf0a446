"""What cannot work is refused before a run starts, with the reason."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import tiny_model, tiny_party, tiny_wire

from fedadapt.algorithms import Update
from fedadapt.errors import ConfigError
from fedadapt.registry import create


def settle(name, options=None, *, adapter="parallel", norms="frozen", sizes=(4,) * 7, **train):
    """The algorithm in a tiny run."""
    model = tiny_model(adapter, norms)
    return tiny_party(
        model, sizes=sizes, algorithm=create("algorithm", name, options or {}), **train
    ).algorithm


def refuse(reason, *arguments, **options):
    """Checks that the run is refused for `reason`, in one line."""
    with pytest.raises(ConfigError, match=reason) as caught:
        settle(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_what_reads_gradients_off_updates_needs_sgd(name):
    """AdamW rescales gradients, so that the sum of them is no longer in the update."""
    refuse(r"train.optimizer is 'adamw'.*use 'sgd'", name, optimizer="adamw")
    assert settle(name).num_clients == 7


def test_fednova_does_not_rescale_averaged_statistics():
    """A rescaled running variance is that of no batch."""
    refuse("use norms 'frozen' or 'local'", "fednova", norms="averaged")


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_what_clients_remember_must_arrive(name):
    """A codec that loses for good makes server and clients remember different things; error feedback makes up for it."""
    model = tiny_model()

    def party(codec, **options):
        wire = tiny_wire(model, codec, **options)
        return tiny_party(model, algorithm=create("algorithm", name), wire=wire)

    with pytest.raises(ConfigError, match=r"remember what they send.*codec.error_feedback=true"):
        party("int4")
    for codec, options in (("int4", {"error_feedback": True}), ("zstd", {}), ("float32", {"delta": True})):
        party(codec, **options)


@pytest.mark.parametrize("name", ["fednova", "qfedavg"])
def test_a_norm_bound_bounds(name):
    """Where numbers of the clients' multiply updates, a bound on updates would promise what it does not keep."""
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"numbers that clients send \(.*past federation.norm_bound"):
        tiny_party(model, algorithm=create("algorithm", name), wire=tiny_wire(model, norm_bound=1.0))
    tiny_party(model, algorithm=create("algorithm", name), wire=tiny_wire(model))


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("krum", {"attackers": 2}, 7),
        ("multi_krum", {"attackers": 1}, 5),
        ("bulyan", {"attackers": 1}, 7),
        ("trimmed_mean", {}, 5),
        ("trimmed_mean", {"fraction": 0.3}, 4),
    ],
)
def test_robust_rules_need_enough_clients(name, options, least):
    """A cohort in which the rule promises nothing is refused; one client more is not."""
    refuse(
        f"at least {least} clients, there are {least - 1}",
        name,
        options,
        sizes=(4,) * (least - 1),
    )
    settle(name, options, sizes=(4,) * least)


def test_multi_krum_does_not_average_liars():
    """Of seven clients with two liars at most five are averaged."""
    refuse("use at most 5", "multi_krum", {"attackers": 2, "selected": 6})


def test_multi_krum_averages_fewer_where_fewer_came():
    """Eight of ten were to be averaged, seven came, and two of them lie."""
    technique = create("algorithm", "multi_krum", {"attackers": 2, "selected": 8})
    deltas = (1.0, 1.1, 0.9, 1.0, 1.05, 100.0, 100.0)
    updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate(deltas)]
    moved = technique.step(technique.init({"w": torch.zeros(1)}), updates)["model"]["w"]
    assert float(moved) == pytest.approx(1.01)


@pytest.mark.parametrize(("good", "bad", "size"), [(5, 4, 1e6), (11, 9, 1e3)])
def test_the_geometric_median_is_among_the_many(good, bad, size):
    """However far away the others say they are, just under half of all; more iterations change nothing."""
    many = torch.randn(good, 20, generator=torch.Generator().manual_seed(0))
    rows = [*many, *torch.full((bad, 20), size)]
    updates = [Update(k, 1, 1, {"delta": {"w": row}}) for k, row in enumerate(rows)]

    def moved(iterations):
        technique = create("algorithm", "geometric_median", {"iterations": iterations})
        return technique.step(technique.init({"w": torch.zeros(20)}), updates)["model"]["w"]

    assert float(moved(32).norm()) < 2 * float(many.norm(dim=1).max())
    assert torch.allclose(moved(32), moved(2000), rtol=1e-3)


@pytest.mark.parametrize("rows", [[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0], [1, 10], [10, 11]]])
def test_the_geometric_median_is_not_caught_by_an_update(rows):
    """Each value of the first, or of the second, is the middle one, and the least sum of distances is elsewhere."""
    updates = [
        Update(k, 1, 1, {"delta": {"w": torch.tensor(row, dtype=torch.float32)}})
        for k, row in enumerate(rows)
    ]
    technique = create("algorithm", "geometric_median")
    state = technique.init({"w": torch.zeros(len(rows[0]))})
    point = technique.step(state, updates)["model"]["w"].requires_grad_()
    distances = sum((update.streams["delta"]["w"] - point).norm() for update in updates)
    assert float(torch.autograd.grad(distances, point)[0].norm()) < 0.01


def test_checks_hold_within_a_chain():
    """Every technique of a chain is asked."""
    refuse("at least 5 clients", "chain", {"of": ["fedprox", "krum"]}, sizes=(4,) * 4)
    refuse("use 'sgd'", "chain", {"of": ["scaffold", "fedadam"]}, optimizer="adamw")


def test_what_clients_keep_must_be_trained_and_leave_something():
    """A head that is not there cannot be kept, and if all is kept nothing travels."""
    refuse(
        "clients are to keep adapter, which is not trained", "fedper", {"kept": ["adapter"]}, adapter="head"
    )
    refuse("nothing would travel", "fedper", adapter="head")
    refuse("nothing would travel", "fedrep", adapter="head", epochs=2)


def test_fedrep_leaves_epochs_for_the_rest():
    """As many epochs for the head as there are leave none."""
    refuse("set train.epochs to 3 or more", "fedrep", {"head_epochs": 2}, epochs=2)
    settle("fedrep", {"head_epochs": 2}, epochs=3)


def test_personal_adapters_need_adapters():
    """With full fine-tuning there is nothing that could be personal."""
    refuse("use adapter 'parallel', or algorithm 'ditto'", "perada", adapter="full")


@pytest.mark.parametrize("norms", ["local", "averaged"])
def test_mixtures_need_frozen_norms(norms):
    """A mixture of running statistics is that of neither model."""
    refuse("use norms 'frozen'", "apfl", norms=norms)


@pytest.mark.parametrize("name", ["qfedavg", "fednova", "fedbuff", "norm_clipping"])
def test_rescaled_updates_need_fixed_statistics(name):
    """A rescaled running variance is that of no batch."""
    refuse("use norms 'frozen' or 'local'", name, norms="averaged")
    settle(name, norms="local")


def test_a_buffer_is_filled_by_those_at_work():
    """More updates than clients at work could never come together."""
    refuse("a buffer of 9 updates is not filled by 7 clients", "fedbuff", {"buffer": 9})

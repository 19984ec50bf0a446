"""Techniques are put together where the mathematics allows it, and refused with the reason where not."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import federate, tiny_model, tiny_party
from tiny import tiny

from fedadapt.algorithms import Update
from fedadapt.algorithms.chain import chain
from fedadapt.errors import ConfigError
from fedadapt.registry import create


def make(name, **options):
    """An algorithm by its name."""
    return create("algorithm", name, options)


REFUSED = [
    (["fedavgm", "fedadam"], "both set the server's step"),
    (["krum", "median"], "both set the aggregation"),
    (["fednova", "median"], "both set the aggregation"),
    (["scaffold", "feddyn"], "sum of plain gradients"),
    (["fedprox", "scaffold"], "sum of plain gradients"),
    (["fednova", "fedprox"], "sum of plain gradients"),
    (["scaffold", "median"], "past the aggregation of Median"),
    (["scaffold", "fedbuff"], "models of different rounds|remember what they sent"),
    (["scaffold", "norm_clipping"], "remember what they sent"),
    (["feddyn", "norm_clipping"], "remember what they sent"),
    (["feddyn", "median"], "remember what they sent"),
    (["feddyn", "fedbuff"], "remember what they sent"),
    (["trimmed_mean", "fedexp"], "past the aggregation of Trimmed mean"),
]


@pytest.mark.parametrize(("of", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_does_not_go_together_is_refused(of, reason):
    """In either order, in one line that names both."""
    for names in (of, of[::-1]):
        with pytest.raises(ConfigError, match=reason) as caught:
            make("chain", of=names)
        assert all(make(name).name in str(caught.value) for name in of)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "of",
    [
        ["fedprox", "krum", "fedadam"],
        ["norm_clipping", "median", "fedavgm"],
        ["scaffold", "fedadam"],
        ["feddyn", "fedlc"],
        ["fedprox", "fedexp"],
    ],
    ids="+".join,
)
def test_what_goes_together_trains(of):
    """Two rounds move the model, and stay finite."""
    party = tiny_party(tiny_model("head"), sizes=(4,) * 6, algorithm=make("chain", of=of))
    states = federate(party, [range(6), range(6)])
    moved = states[-1]["model"]["fc.weight"] - states[0]["model"]["fc.weight"]
    assert torch.isfinite(moved).all()
    assert moved.abs().max() > 0


def test_gradients_are_wrapped_in_order():
    """Two springs of strengths 1 and 2 pull like one of strength 3."""
    both = chain(make("fedprox", mu=1.0), make("fedprox", mu=2.0))
    ends = [
        federate(tiny_party(tiny_model("head"), sizes=(8, 5), algorithm=a, epochs=3), [[0, 1]])[-1]["model"]
        for a in (both, make("fedprox", mu=3.0))
    ]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name])


def test_a_liar_is_left_out_before_the_server_steps():
    """Krum gives 1.5 of (1, 1.5, 2, 2.75, -900); at half momentum two such rounds move by 1.5 and 2.25."""
    algorithm = chain(make("krum"), make("fedavgm", momentum=0.5))
    state = algorithm.init({"w": torch.zeros(1)})
    deltas = (1.0, 1.5, 2.0, 2.75, -900.0)
    updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate(deltas)]
    for expected in (1.5, 3.75):
        state = algorithm.step(state, updates)
        assert state["model"]["w"].item() == pytest.approx(expected)


def test_a_recipe_and_the_command_line_can_say_it():
    """Names, or tables with options, in a list."""
    config = tiny('algorithm={name = "chain", of = ["fedprox", {name = "krum", attackers = 2}]}')
    assert config.algorithm.create("algorithm").name == "FedProx + Krum"
    config = tiny("algorithm=chain", 'algorithm.of=["fedprox", "median"]')
    assert config.algorithm.create("algorithm").name == "FedProx + Median"


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ([], "at least 1 item"),
        (["nonsense"], "unknown algorithm 'nonsense'"),
        ([{"mu": 1.0}], "without a name"),
        ([{"name": "fedprox", "my": 1.0}], "unknown key 'my' .allowed: mu"),
    ],
)
def test_a_wrong_list_is_one_line(of, message):
    """What is wrong in a list is said as it is elsewhere."""
    with pytest.raises(ConfigError, match=message):
        make("chain", of=of)

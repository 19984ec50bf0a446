"""Server steps against Flower's, an independent implementation, on identical updates."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fedadapt.algorithms import Update
from fedadapt.registry import create

strategies = pytest.importorskip(
    "flwr.serverapp.strategy", reason="flwr is not installed; pip install 'flwr>=1.41,<1.42'"
)
app = pytest.importorskip("flwr.app")

SHAPES = {"a": (2, 3), "b": (4,)}
COUNTS = (30, 10, 25)
LR, BETA1, BETA2, TAU = 0.1, 0.9, 0.99, 1e-3


def draw(generator):
    """Random values in the shapes of `SHAPES`."""
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def theirs(strategy, server_round, model, deltas, counts):
    """The model after one of Flower's steps, whose clients send whole models."""
    strategy.current_arrays = {name: tensor.numpy() for name, tensor in model.items()}
    if isinstance(strategy, strategies.FedAvgM):
        arrays = {name: app.Array(tensor.numpy()) for name, tensor in model.items()}
        strategy.current_arrays = app.ArrayRecord(arrays)
    replies = []
    for delta, count in zip(deltas, counts, strict=True):
        arrays = app.ArrayRecord(
            {name: app.Array((tensor + delta[name]).numpy()) for name, tensor in model.items()}
        )
        content = app.RecordDict(
            {"arrays": arrays, "metrics": app.MetricRecord({"num-examples": count, "train_loss": 1.0})}
        )
        # A message of its own needs a running federation; its strategies only look at these two.
        replies.append(SimpleNamespace(content=content, has_error=lambda: False))
    found, _ = strategy.aggregate_train(server_round, replies)
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in found.items()}


def compare(make, strategy, rounds=4, counts=COUNTS):
    """Both servers get the same updates, each goes on from its own model, and they stay together."""
    generator = torch.Generator().manual_seed(0)
    model = draw(generator)
    state = make(1).init(model)
    for number in range(1, rounds + 1):
        deltas = [draw(generator) for _ in counts]
        updates = [Update(k, n, 1, {"delta": d}) for k, (n, d) in enumerate(zip(counts, deltas, strict=True))]
        state = make(number).step(state, updates)
        model = theirs(strategy, number, model, deltas, counts)
        for name, tensor in state["model"].items():
            torch.testing.assert_close(tensor, model[name].to(tensor), rtol=1e-4, atol=1e-5)


def test_fedadam_is_that_of_flower():
    """Over four rounds; Flower corrects its rate for the bias of the moments, which is done here by the rate."""

    def make(number):
        corrected = LR * math.sqrt(1 - BETA2 ** (number + 1)) / (1 - BETA1 ** (number + 1))
        return create("algorithm", "fedadam", {"lr": corrected, "beta1": BETA1, "beta2": BETA2, "tau": TAU})

    compare(make, strategies.FedAdam(eta=LR, beta_1=BETA1, beta_2=BETA2, tau=TAU))


def test_fedyogi_is_that_of_flower():
    """Over four rounds, to float tolerance."""
    options = {"lr": LR, "beta1": BETA1, "beta2": BETA2, "tau": TAU}
    compare(
        lambda number: create("algorithm", "fedyogi", options),
        strategies.FedYogi(eta=LR, beta_1=BETA1, beta_2=BETA2, tau=TAU),
    )


def test_fedadagrad_is_that_of_flower():
    """Over four rounds, to float tolerance."""
    compare(
        lambda number: create("algorithm", "fedadagrad", {"lr": LR, "tau": TAU}),
        strategies.FedAdagrad(eta=LR, tau=TAU),
    )


def test_fedavg_is_that_of_flower():
    """Over four rounds, to float tolerance."""
    compare(lambda number: create("algorithm", "fedavg"), strategies.FedAvg())


def test_fedavgm_is_that_of_flower():
    """Over four rounds, so that the velocity counts."""
    compare(
        lambda number: create("algorithm", "fedavgm", {"momentum": 0.8, "lr": 0.5}),
        strategies.FedAvgM(server_momentum=0.8, server_learning_rate=0.5),
    )


@pytest.mark.parametrize(
    ("name", "options", "strategy"),
    [
        ("median", {}, strategies.FedMedian),
        ("trimmed_mean", {"fraction": 0.3}, partial(strategies.FedTrimmedAvg, beta=0.3)),
        ("krum", {"attackers": 2}, partial(strategies.Krum, num_malicious_nodes=2)),
        (
            "multi_krum",
            {"attackers": 2, "selected": 3},
            partial(strategies.MultiKrum, num_malicious_nodes=2, num_nodes_to_select=3),
        ),
    ],
)
@pytest.mark.parametrize("clients", [7, 8])
def test_robust_rules_are_those_of_flower(name, options, strategy, clients):
    """Over four rounds of clients with as many samples each, an odd and an even number of them."""
    compare(lambda number: create("algorithm", name, options), strategy(), counts=(10,) * clients)

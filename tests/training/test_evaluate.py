"""Accuracy and loss count real samples only, once each."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.cases import MEAN, STD, client_indices, jiggle, tiny_model, tiny_split
from torch.nn import functional

from fedadapt.data.augment import normalise
from fedadapt.params import stack
from fedadapt.training import evaluate as room
from fedadapt.training.evaluate import evaluate, evaluate_clients, over_clients


def by_hand(model, params, split):
    """Accuracy and loss of one set of tensors, in one pass."""
    images = normalise(split.images, MEAN, STD, torch.float32)
    with torch.inference_mode():
        logits = model({name: tensor[None] for name, tensor in params.items()}, images)
    right = (logits.argmax(1) == split.labels).double().mean()
    return float(right), float(functional.cross_entropy(logits, split.labels))


@pytest.mark.parametrize("norms", ["frozen", "averaged"])
@pytest.mark.parametrize("batch", [7, 500])
def test_a_global_model_is_measured_on_every_sample_once(monkeypatch, norms, batch):
    """Whatever the size of a pass, the numbers are those of the whole split at once, and nothing moves."""
    monkeypatch.setattr(room, "BATCH_IMAGES", batch)
    model, split = tiny_model(norms=norms), tiny_split(30)
    params = jiggle(model.start)
    before = {name: tensor.clone() for name, tensor in params.items()}
    measured = evaluate(model, params, split, MEAN, STD)
    assert (measured["accuracy"], measured["loss"]) == pytest.approx(by_hand(model, params, split), rel=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in params.items())


def test_clients_are_measured_on_their_own_samples():
    """Padding counts neither as right nor as wrong, and who has no samples has no accuracy."""
    model, sizes = tiny_model(), (3, 0, 11, 1)
    split, indices = tiny_split(15), client_indices(sizes)
    clients = [jiggle(model.start, seed, scale=0.5) for seed in range(4)]
    measured = evaluate_clients(model, stack(clients), split, indices, MEAN, STD)
    assert measured[1] == {}
    for client in (0, 2, 3):
        accuracy, loss = by_hand(model, clients[client], split.take(indices[client]))
        assert measured[client]["accuracy"] == pytest.approx(accuracy)
        assert measured[client]["loss"] == pytest.approx(loss, rel=1e-5)


def test_clients_are_summed_up():
    """Of twelve clients the worst tenth is one: the lowest accuracy, the highest loss. Quartiles lie between values.

    Accuracies 0, 1/11, ..., 1 have mean 1/2, variance (12^2 - 1) / 12 / 11^2, quartiles 2.75 / 11 and 8.25 / 11.
    """
    measured = [{"accuracy": k / 11, "loss": 11.0 - k} for k in range(12)]
    found = over_clients([*measured, {}])
    assert found == pytest.approx(
        {
            "client_accuracy_mean": 0.5,
            "client_accuracy_worst": 0.0,
            "client_accuracy_std": math.sqrt(143 / 12) / 11,
            "client_accuracy_iqr": 0.5,
            "client_loss_mean": 5.5,
            "client_loss_worst": 11.0,
            "client_loss_std": math.sqrt(143 / 12),
            "client_loss_iqr": 5.5,
        }
    )
    assert over_clients([{"accuracy": k / 19} for k in range(20)])["client_accuracy_worst"] == pytest.approx(
        0.5 / 19
    )
    assert over_clients([{}, {}]) == {}


def test_clients_without_any_samples_have_no_accuracy():
    """Nothing is computed and nothing fails."""
    model = tiny_model()
    nothing = [torch.arange(0), torch.arange(0)]
    found = evaluate_clients(model, stack([model.start] * 2), tiny_split(3), nothing, MEAN, STD)
    assert found == [{}, {}]

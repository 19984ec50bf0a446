"""Metrics from counts are those of scikit-learn, client by client and batch by batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve
from torch.nn import functional

from fedadapt.training.metrics import CALIBRATION_BINS, count, scores

WORLDS = st.tuples(st.integers(0, 10**6), st.sampled_from([2, 3, 7]), st.integers(1, 40), st.integers(1, 4))
"""Seed, classes, samples and clients."""


def draw(seed, classes, samples, clients):
    """Logits with ties, labels that leave classes out, and ragged masks with a sample for every client at least."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(clients, samples, classes, generator=generator).mul(2).round(decimals=1)
    occurring = torch.randint(1, classes + 1, (), generator=generator)
    labels = torch.randint(int(occurring), (clients, samples), generator=generator)
    sizes = torch.randint(1, samples + 1, (clients, 1), generator=generator)
    return logits, labels, torch.arange(samples) < sizes


def ece_by_hand(confidence, right):
    """The source's sum, sample by sample."""
    bins = {}
    for c, r in zip(confidence, right, strict=True):
        bins.setdefault(max(0, math.ceil(c * CALIBRATION_BINS) - 1), []).append((c, r))
    return sum(abs(sum(r - c for c, r in found)) for found in bins.values()) / len(confidence)


@given(WORLDS)
def test_every_metric_is_that_of_scikit_learn(world):
    """For ragged clients, tied logits and classes that do not occur."""
    logits, labels, mask = draw(*world)
    found = scores(count(logits, labels, mask))
    for client, real in enumerate(mask):
        own, truth = logits[client, real], labels[client, real].numpy()
        taken = own.argmax(1).numpy()
        expected = {
            "accuracy": theirs.accuracy_score(truth, taken),
            "loss": float(functional.cross_entropy(own.double(), labels[client, real])),
            "macro_f1": theirs.f1_score(truth, taken, average="macro"),
            # As balanced_accuracy_score, which warns of predictions that no sample has.
            "balanced_accuracy": theirs.recall_score(
                truth, taken, average="macro", labels=sorted(set(truth)), zero_division=0
            ),
            "calibration_error": ece_by_hand(
                own.softmax(1).amax(1).double().tolist(), (taken == truth).tolist()
            ),
        }
        if logits.shape[2] == 2:
            both = len(set(truth)) == 2
            expected["auroc"] = theirs.roc_auc_score(truth, own[:, 1] - own[:, 0]) if both else math.nan
        assert list(found) == [
            *("accuracy", "loss", "balanced_accuracy", "macro_f1", "calibration_error"),
            *(["auroc"] if logits.shape[2] == 2 else []),
        ]
        for name, value in expected.items():
            assert found[name][client].item() == pytest.approx(value, abs=2e-6, nan_ok=True), name


def test_the_bins_of_calibration_are_those_of_scikit_learn():
    """Accuracy and mean confidence of every bin that is not empty."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 500, 2, generator=generator)
    labels = torch.randint(2, (1, 500), generator=generator)
    counts = count(logits, labels, torch.ones(1, 500, dtype=torch.bool))
    confidence, taken = logits[0].softmax(1).max(1)
    accuracy, mean_confidence = calibration_curve(taken == labels[0], confidence, n_bins=CALIBRATION_BINS)
    full = counts.confident[0] > 0
    assert counts.confident.sum() == 500
    assert (counts.correct / counts.confident)[0, full].tolist() == pytest.approx(list(accuracy))
    assert (counts.confidence / counts.confident)[0, full].tolist() == pytest.approx(list(mean_confidence))


@given(WORLDS, st.integers(1, 39))
def test_batches_add_up(world, cut):
    """Counted in two parts, in any place, the metrics are those of the whole."""
    logits, labels, mask = draw(*world)
    whole = scores(count(logits, labels, mask))
    parts = [(t[:, :cut], t[:, cut:]) for t in (logits, labels, mask)]
    first, second = (count(*(part[half] for part in parts)) for half in (0, 1))
    for name, value in scores(first + second).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-7, equal_nan=True)


def test_metrics_by_hand():
    """Three of four right, but all of one class: the other has a recall of 0 and an F1 of 0.

    Balanced accuracy (1 + 0) / 2. F1 of class 0: 6 / 7, of class 1: 0, the mean 3 / 7. With equal margins no pair is
    told apart. Confidence is 0.8 everywhere and accuracy 0.75.
    """
    logits = torch.tensor([[[math.log(4.0), 0.0]] * 4])
    labels = torch.tensor([[0, 0, 0, 1]])
    found = scores(count(logits, labels, torch.ones(1, 4, dtype=torch.bool)))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "accuracy": 0.75,
            "loss": -(3 * math.log(0.8) + math.log(0.2)) / 4,
            "balanced_accuracy": 0.5,
            "macro_f1": 3 / 7,
            "calibration_error": 0.05,
            "auroc": 0.5,
        },
        abs=1e-6,
    )


def test_a_model_that_came_to_nothing_says_so():
    """Logits that are not numbers give a loss and a calibration error that are none, and no error."""
    logits = torch.full((1, 3, 4), torch.nan)
    found = scores(count(logits, torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool)))
    assert found["loss"].isnan()
    assert found["calibration_error"].isnan()
    assert 0 <= found["accuracy"] <= 1


def test_the_area_of_many_samples_is_no_more_than_one():
    """There are more pairs than single precision can count: 4,093 times 4,099 of them, all in order."""
    negative, positive = 4093, 4099
    margins = torch.cat([torch.linspace(-2, -1, negative), torch.linspace(1, 2, positive)])
    labels = torch.cat([torch.zeros(negative), torch.ones(positive)]).long()[None]
    logits = torch.stack([-margins / 2, margins / 2], dim=1)[None]
    assert scores(count(logits, labels, torch.ones_like(labels, dtype=torch.bool)))["auroc"].item() == 1.0

"""A head from class means is exact however the samples are spread, and separates what can be separated."""

from __future__ import annotations

import functools
import itertools
import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fedadapt.adapters.class_means import class_moments, head_from_moments
from fedadapt.errors import ClientError


def clouds(count=300, classes=4, channels=3, seed=0):
    """Samples of Gaussian classes with one skewed covariance."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0, 0.3, 1.0]])
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, channels, generator=generator)
    return centres[labels] + torch.randn(count, channels, generator=generator) @ mix, labels


@given(cut=st.lists(st.integers(1, 299), max_size=5, unique=True), products=st.booleans())
def test_the_parties_moments_add_up(cut, products):
    """However the samples are split, the head is the one of all samples together."""
    x, y = clouds()
    edges = [0, *sorted(cut), 300]
    parts = [class_moments(x[a:b], y[a:b], 4, products=products) for a, b in itertools.pairwise(edges)]
    pooled = head_from_moments(functools.reduce(operator.add, parts))
    whole = head_from_moments(class_moments(x, y, 4, products=products))
    for ours, theirs in zip(pooled, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_products_it_is_the_nearest_class_mean():
    """The largest logit belongs to the class whose mean is nearest."""
    x, y = clouds()
    weight, bias = head_from_moments(class_moments(x, y, 4))
    means = torch.stack([x[y == d].mean(0) for d in range(4)])
    assert torch.equal((x @ weight.T + bias).argmax(1), torch.cdist(x, means).argmin(1))


def test_with_products_it_is_linear_discriminant_analysis():
    """Differences of logits are in the proportions of scikit-learn's without its priors, when nothing is shrunk."""
    x, y = clouds()
    weight, bias = head_from_moments(class_moments(x, y, 4, products=True), shrinkage=0.0)
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y.numpy())
    scores = reference.decision_function(x.numpy()) - np.log(reference.priors_)
    ours, theirs = x @ weight.T + bias, torch.from_numpy(scores).float()
    ours, theirs = ours - ours[:, :1], theirs - theirs[:, :1]
    torch.testing.assert_close(ours / ours.norm(), theirs / theirs.norm(), rtol=1e-3, atol=1e-5)


@given(products=st.booleans(), scale=st.floats(0.01, 100))
def test_rows_are_as_long_as_those_of_a_fresh_layer(products, scale):
    """Whatever features measure: nothing in common, a mean square length of 1."""
    x, y = clouds()
    weight, bias = head_from_moments(class_moments(scale * x, y, 4, products=products))
    torch.testing.assert_close(weight.sum(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert weight.square().sum(1).mean().item() == pytest.approx(1, rel=1e-5)
    assert abs(bias.sum().item()) < 1e-3 * scale


def test_a_class_that_nobody_has_gets_the_mean_of_all():
    """It wins nowhere near a class that somebody has."""
    x, y = clouds(classes=3)
    weight, bias = head_from_moments(class_moments(x, y, 4))
    means = torch.stack([x[y == d].mean(0) for d in range(3)])
    toward = torch.vstack([means, x.mean(0)])
    toward -= toward.mean(0)
    torch.testing.assert_close(
        weight[3] / weight[3].norm(), toward[3] / toward[3].norm(), rtol=1e-3, atol=1e-3
    )
    assert (means @ weight.T + bias).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (
            torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
            [0, 1],
            "more samples than classes, got 2 samples of 2",
        ),
        (
            torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
            [1, 1, 1, 1],
            "two classes .* 4 samples of 1",
        ),
        (torch.ones(4, 3), [0, 0, 1, 1], "vary within classes"),
    ],
)
def test_what_says_nothing_is_refused(x, y, said):
    """One sample a class, a single class, and features that do not vary."""
    with pytest.raises(ClientError, match=said):
        head_from_moments(class_moments(x, torch.tensor(y), 2))

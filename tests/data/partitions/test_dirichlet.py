"""Label skew follows alpha."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedadapt.data.dataset import Split
from fedadapt.data.partitions.dirichlet import dirichlet
from fedadapt.data.skew import effective_classes, label_counts, size_gini
from fedadapt.errors import ConfigError, DataError
from fedadapt.registry import create
from fedadapt.seeds import Seeds

_LABELS = torch.arange(2000) % 10
_SPLIT = Split(torch.zeros(2000, 1, 1, 1, dtype=torch.uint8), _LABELS)


def test_counts_are_the_draws_of_the_derived_seed():
    """Of the 200 samples of class 0, client k gets the piece between the cumulative sums of the first draw."""
    clients = dirichlet(alpha=1.0)(_SPLIT, 4, Seeds(3))
    shares = np.random.default_rng(Seeds(3).derive("partition")).dirichlet([1.0] * 4)
    cuts = (np.cumsum(shares) * 200).astype(int)[:-1]
    expected = np.diff([0, *cuts, 200])
    assert label_counts(_LABELS, clients, 10)[:, 0].tolist() == expected.tolist()


def test_a_smaller_alpha_is_more_skewed():
    """Clients have fewer effective classes as alpha falls."""
    mean = [
        float(
            effective_classes(label_counts(_LABELS, dirichlet(alpha=alpha)(_SPLIT, 8, Seeds(0)), 10)).mean()
        )
        for alpha in (0.1, 1.0, 1000.0)
    ]
    assert mean[0] < mean[1] < mean[2]
    assert mean[2] > 9.9


def test_balanced_sizes_are_more_equal():
    """`balanced` lowers the inequality of sizes."""
    free, balanced = (
        size_gini(label_counts(_LABELS, dirichlet(alpha=0.3, balanced=on)(_SPLIT, 8, Seeds(0)), 10))
        for on in (False, True)
    )
    assert balanced < free


def test_the_smallest_client_has_min_size():
    """Draws are repeated until every client has enough."""
    free = dirichlet(alpha=0.3)(_SPLIT, 8, Seeds(2))
    enough = dirichlet(alpha=0.3, min_size=100)(_SPLIT, 8, Seeds(2))
    assert min(map(len, free)) < 100 <= min(map(len, enough))


def test_a_minimum_that_no_draw_reaches_is_an_error():
    """When ten repeats do not help, the message names alpha, the size, the clients and the way out."""
    with pytest.raises(
        DataError,
        match=r"^no Dirichlet draw with alpha=0.001 gave each of 50 clients at least 1 of 2000 samples; raise alpha, ",
    ):
        dirichlet(alpha=0.001)(_SPLIT, 50, Seeds(0))


def test_a_minimum_beyond_the_samples_is_refused_at_once():
    """Ten clients cannot have 300 of 2000 samples each."""
    with pytest.raises(DataError, match=r"10 clients with at least 300 each; 1 to 6 clients are possible$"):
        dirichlet(min_size=300)(_SPLIT, 10, Seeds(0))


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": -1}, {"alpha": float("nan")}, {"min_size": 0}])
def test_options_out_of_range_are_refused(options):
    """Concentrations are above 0 and finite, min_size at least 1."""
    with pytest.raises(ConfigError, match=f"^partition 'dirichlet': key '{next(iter(options))}' is "):
        create("partition", "dirichlet", options)

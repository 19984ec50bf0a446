"""How unequal the clients of a partition are: in labels and in size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def label_counts(
    labels: Int64[Tensor, " N"], clients: Sequence[Int64[Tensor, " _"]], num_classes: int
) -> Int64[Tensor, "K D"]:
    """How many samples of each class each client holds.

    Args:
        labels: of the whole split.
        clients: one tensor of indices into `labels` a client.
        num_classes: D.
    """
    return torch.stack([torch.bincount(labels[indices], minlength=num_classes) for indices in clients])


def effective_classes(counts: Int64[Tensor, "K D"]) -> Float64[Tensor, " K"]:
    """How many equally frequent classes would be as diverse as each client's labels.

    ``exp(-sum_d p_d ln p_d)`` with ``p`` the client's label distribution: 1 for a single class, D for a
    uniform client, 0 for a client without samples.

    Args:
        counts: samples by client and class.

    Source:
        M. O. Hill, *Diversity and Evenness: A Unifying Notation and Its Consequences*, Ecology 1973 (order 1).
    """
    diversity = torch.exp(_entropy(_distribution(counts)))
    return torch.where(counts.sum(1) > 0, diversity, 0.0)


def jensen_shannon(
    counts: Int64[Tensor, "K D"], everyone: Int64[Tensor, "J D"] | None = None
) -> Float64[Tensor, " K"]:
    """The distance of each client's label distribution from the pooled one, 0 (equal) to 1 (disjoint).

    ``H((p + q) / 2) - (H(p) + H(q)) / 2`` in bits, with ``p`` the client's label distribution, ``q`` that of
    all clients together and ``H`` the entropy. 0 for a client without samples.

    Args:
        counts: samples by client and class.
        everyone: of all clients that are pooled; None where `counts` has them all.

    Source:
        J. Lin, *Divergence Measures Based on the Shannon Entropy*, IEEE Trans. Information Theory 1991,
        equation 3.14 with logarithms to base 2.
    """
    pooled = _distribution((counts if everyone is None else everyone).sum(0, keepdim=True))
    own = _distribution(counts)
    nats = _entropy((own + pooled) / 2) - (_entropy(own) + _entropy(pooled)) / 2
    bits = (nats / torch.log(torch.tensor(2.0, dtype=torch.float64))).clamp(0, 1)
    return torch.where(counts.sum(1) > 0, bits, 0.0)


def size_gini(counts: Int64[Tensor, "K D"]) -> float:
    """The Gini coefficient of the clients' sizes, 0 (all equal) to ``(K - 1) / K`` (one holds everything).

    ``sum_i sum_j |n_i - n_j| / (2 K sum_i n_i)`` with ``n`` the samples of each client.

    Args:
        counts: samples by client and class.
    """
    sizes = counts.sum(1).double()
    if not sizes.any():
        return 0.0
    differences = (sizes[:, None] - sizes[None, :]).abs().sum()
    return float(differences / (2 * len(sizes) * sizes.sum()))


def _distribution(counts: Int64[Tensor, "K D"]) -> Float64[Tensor, "K D"]:
    return counts.double() / counts.sum(1, keepdim=True).clamp(min=1)


def _entropy(p: Float64[Tensor, "K D"]) -> Float64[Tensor, " K"]:
    """In nats."""
    return -torch.xlogy(p, p).sum(1)

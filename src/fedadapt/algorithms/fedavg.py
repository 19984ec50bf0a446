"""Federated averaging."""

from __future__ import annotations

from fedadapt.algorithms.algorithm import Algorithm
from fedadapt.registry import register


@register("algorithm", "fedavg")
def fedavg() -> Algorithm:
    """FedAvg: the mean of the clients' models, weighted by their numbers of samples.

    ``w <- w + sum_k (n_k / n) * (w_k - w)`` over the clients k that answered, n the sum of their n_k.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> state = {"model": {"w": torch.zeros(1)}}
        >>> ones = {"delta": {"w": torch.ones(1)}}
        >>> half = {"delta": {"w": torch.full((1,), 0.5)}}
        >>> fedavg().step(state, [Update(0, 30, 1, ones), Update(1, 10, 1, half)])["model"]["w"]
        tensor([0.8750])

    Source:
        H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, *Communication-Efficient Learning of
        Deep Networks from Decentralized Data*, AISTATS 2017, algorithm 1.

    Differs:
        Clients send the difference to what they got, which has the same mean and packs into fewer bytes.
    """
    return Algorithm("FedAvg")

"""FedNova."""

from __future__ import annotations

from fedadapt.algorithms.algorithm import Algorithm, Gathered, LocalRule, ServerRule
from fedadapt.algorithms.path import needs_fixed_statistics, needs_sgd, path_length
from fedadapt.params import Params, scale, weighted_mean
from fedadapt.registry import register


@register("algorithm", "fednova")
def fednova() -> Algorithm:
    """FedNova: clients that take more steps do not pull harder.

    ``w <- w + (sum_k p_k a_k) * sum_k p_k delta_k / a_k``, where p_k is client k's share of the samples and a_k how many
    gradients its update is the sum of (`path_length`). With equal steps it is FedAvg.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> def update(client, steps, delta):
        ...     streams = {"delta": {"w": torch.tensor([delta])}}
        ...     return Update(client, 10, steps, streams, {"path_length": float(steps)})
        >>> state = fednova().init({"w": torch.zeros(1)})
        >>> fednova().step(state, [update(0, 1, 1.0), update(1, 9, 4.5)])["model"]["w"]  # 5 * (1 + 0.5) / 2
        tensor([3.7500])

    Source:
        J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, *Tackling the Objective Inconsistency Problem in
        Heterogeneous Federated Optimization*, NeurIPS 2020, equation 12 and algorithm 1.
    """
    return Algorithm(
        "FedNova",
        local=LocalRule(scalars={"path_length": path_length}, reads_path=True),
        server=ServerRule(aggregate=_normalised),
        checks=(needs_sgd, needs_fixed_statistics),
    )


def _normalised(gathered: Gathered) -> Params:
    lengths = [update.scalars["path_length"] for update in gathered.updates]
    total = sum(gathered.weights)
    effective = sum(w * a for w, a in zip(gathered.weights, lengths, strict=True)) / total
    return weighted_mean(
        (weight, scale(update.streams["delta"], effective / length))
        for weight, update, length in zip(gathered.weights, gathered.updates, lengths, strict=True)
    )

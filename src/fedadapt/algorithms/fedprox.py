"""FedProx."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, LocalRule, Work, add_where
from fedadapt.params import Params, add
from fedadapt.registry import register
from fedadapt.training.local import Gradient


@register("algorithm", "fedprox")
def fedprox(mu: Annotated[float, Field(ge=0)] = 0.01) -> Algorithm:
    """FedProx: a spring pulls each client back to the model it got.

    ``F_k(w) + mu / 2 * |w - w^t|^2``, so ``mu * (w - w^t)`` is added to every gradient.

    Args:
        mu: strength of the spring; 0 is FedAvg.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms.algorithm import Work
        >>> from fedadapt.training.config import TrainConfig
        >>> start = {"w": torch.tensor([[1.0]])}
        >>> work = Work(start, start, torch.zeros(1, dtype=torch.int64), 0.1, TrainConfig(), {}, {})
        >>> pulled = fedprox(mu=0.5).local.gradient(lambda point: {"w": torch.ones(1, 1)}, work)
        >>> pulled({"w": torch.tensor([[3.0]])})["w"]
        tensor([[2.]])

    Source:
        T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, *Federated Optimization in Heterogeneous
        Networks*, MLSys 2020, algorithm 2.

    Differs:
        Clients take the steps that ``[train]`` says instead of solving to an accuracy gamma. Updates are weighted by
        samples; the paper samples clients by size and averages equally.
    """

    def gradient(plain: Gradient, work: Work) -> Gradient:
        def pulled(point: Params) -> Params:
            away = add({n: t for n, t in point.items() if n in work.start}, work.start, alpha=-1.0)
            return add_where(plain(point), away, alpha=mu)

        return pulled

    return Algorithm("FedProx", local=LocalRule(gradient=gradient))

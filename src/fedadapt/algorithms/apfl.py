"""APFL."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, LocalRule, Personal, Setting, Work
from fedadapt.params import Params, scale
from fedadapt.registry import register
from fedadapt.training.local import Gradient


@register("algorithm", "apfl")
def apfl(alpha: Annotated[float, Field(ge=0, le=1)] = 0.5) -> Algorithm:
    """APFL: each client predicts with a mixture of the global model and one of its own.

    What is shared is FedAvg. The own model v steps along ``alpha * g(alpha v + (1 - alpha) w)`` on the same batches,
    where w is the local copy of the shared model; the client predicts with ``alpha v + (1 - alpha) w``.

    Args:
        alpha: share of the own model; 0 is FedAvg, 1 is training alone.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms.algorithm import Work
        >>> from fedadapt.training.config import TrainConfig
        >>> shared, own = {"w": torch.tensor([[1.0]])}, {"w": torch.tensor([[3.0]])}
        >>> work = Work(shared, shared, torch.zeros(1, dtype=torch.int64), 0.1, TrainConfig(), {}, {})
        >>> apfl(alpha=0.5).local.personal.gradient(lambda point: dict(point), own, shared, work)["w"]  # 0.5 * 2
        tensor([[1.]])

    Source:
        Y. Deng, M. M. Kamani, M. Mahdavi, *Adaptive Personalized Federated Learning*, 2020, algorithm 1.

    Differs:
        Alpha is the same for all and stays; the paper can also adapt it.
    """

    def mixed(own: Params, shared: Params) -> Params:
        return {n: alpha * t + (1 - alpha) * shared[n] for n, t in own.items()}

    def gradient(plain: Gradient, own: Params, local: Params, work: Work) -> Params:
        del work
        return scale(plain(mixed(own, local)), alpha)

    return Algorithm(
        "APFL", local=LocalRule(personal=Personal(gradient, use=mixed)), checks=(_needs_frozen_norms,)
    )


def _needs_frozen_norms(setting: Setting) -> str | None:
    if not setting.statistics_move:
        return None
    return "it mixes two models, and a mixture of running statistics is that of neither; use norms 'frozen'"

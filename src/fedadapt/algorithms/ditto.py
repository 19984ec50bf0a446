"""Ditto, and personal adapters in its manner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, LocalRule, Personal, Setting, Work, add_where
from fedadapt.params import Group, Params
from fedadapt.registry import register
from fedadapt.training.local import Gradient

Strength = Annotated[float, Field(ge=0)]


@register("algorithm", "ditto")
def ditto(pull: Strength = 0.1) -> Algorithm:
    """Ditto: beside the model it shares, each client trains one of its own that is pulled to the global one.

    What is shared is FedAvg. The own model v steps along ``g(v) + pull * (v - w^t)`` on the same batches.

    Args:
        pull: lambda; 0 is training alone.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms.algorithm import Work
        >>> from fedadapt.training.config import TrainConfig
        >>> start, own = {"w": torch.tensor([[1.0]])}, {"w": torch.tensor([[3.0]])}
        >>> work = Work(start, start, torch.zeros(1, dtype=torch.int64), 0.1, TrainConfig(), {}, {})
        >>> ditto(pull=0.5).local.personal.gradient(lambda point: {"w": torch.ones(1, 1)}, own, start, work)["w"]
        tensor([[2.]])

    Source:
        T. Li, S. Hu, A. Beirami, V. Smith, *Ditto: Fair and Robust Federated Learning Through Personalization*, ICML 2021,
        algorithm 1.

    Differs:
        Both models see the same batches, one for one.
    """
    return Algorithm("Ditto", local=LocalRule(personal=Personal(_pulled(pull))))


@register("algorithm", "perada")
def perada(pull: Strength = 0.1) -> Algorithm:
    """PerAda: personal adapters, pulled to the global ones, on a norm affine and head that are shared.

    As `ditto`, but only adapters are personal; the rest of a client's model is what it shares.

    Args:
        pull: lambda; 0 lets the personal adapters go their own way.

    Example:
        >>> perada().local.personal.groups
        frozenset({<Group.ADAPTER: 'adapter'>})

    Source:
        C. Xie, D.-A. Huang, W. Chu, D. Xu, C. Xiao, B. Li, A. Anandkumar, *PerAda: Parameter-Efficient Federated Learning
        Personalization with Generalization Guarantees*, CVPR 2024, algorithm 1.

    Differs:
        The server does not distil on data of its own; it averages.
    """
    own = frozenset({Group.ADAPTER})

    def has_adapters(setting: Setting) -> str | None:
        if own <= setting.trained:
            return None
        return "there are no adapters that could be personal; use adapter 'parallel', or algorithm 'ditto'"

    return Algorithm(
        "PerAda", local=LocalRule(personal=Personal(_pulled(pull), groups=own)), checks=(has_adapters,)
    )


def _pulled(pull: float) -> Callable[[Gradient, Params, Params, Work], Params]:
    def gradient(plain: Gradient, own: Params, local: Params, work: Work) -> Params:
        del local
        away = {n: t - work.start[n] for n, t in own.items() if n in work.start}
        return add_where(plain(own), away, alpha=pull)

    return gradient

"""What dishonest clients do: for simulations that ask how much of it a technique bears.

An attack is a value, as an algorithm is, and no algorithm knows of it. It changes the labels that attackers train on,
or the tensors that they send; `fedadapt.engines.hostile` brings it between clients and server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from fedadapt.errors import ConfigError
from fedadapt.params import Streams, scale
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@dataclass(frozen=True)
class Attack:
    """What attackers do. Every neutral value is an honest client.

    Args:
        labels: ``(labels, number of classes) -> labels`` that they train on.
        upload: ``streams -> streams`` that they send.
    """

    labels: Callable[[Int64[Tensor, " n"], int], Int64[Tensor, " n"]] | None = None
    upload: Callable[[Streams], Streams] | None = None


@register("attack", "none")
def none() -> Attack:
    """Every client is honest."""
    return Attack()


@register("attack", "sign_flip")
def sign_flip(factor: Annotated[float, Field(gt=0)] = 1.0) -> Attack:
    """Attackers train as asked and send the opposite: ``-factor * u`` for an upload u.

    Args:
        factor: how much longer than theirs the update is.

    Example:
        >>> import torch
        >>> sign_flip(factor=3.0).upload({"delta": {"w": torch.tensor([2.0])}})
        {'delta': {'w': tensor([-6.])}}

    Source:
        L. Li, W. Xu, T. Chen, G. B. Giannakis, Q. Ling, *RSA: Byzantine-Robust Stochastic Aggregation Methods for
        Distributed Learning from Heterogeneous Datasets*, AAAI 2019, the sign-flipping attack of the experiments.
    """
    return _multiplied(-factor)


@register("attack", "scaled")
def scaled(factor: Annotated[float, Field(gt=1)] = 10.0) -> Attack:
    """Attackers train as asked and make more of it than it is: ``factor * u`` for an upload u.

    Args:
        factor: how much longer than theirs the update is. With the number of clients it replaces the mean.

    Example:
        >>> import torch
        >>> scaled(factor=3.0).upload({"delta": {"w": torch.tensor([2.0])}})
        {'delta': {'w': tensor([6.])}}

    Source:
        E. Bagdasaryan, A. Veit, Y. Hua, D. Estrin, V. Shmatikov, *How To Backdoor Federated Learning*, AISTATS 2020,
        constrain-and-scale.

    Differs:
        What is scaled is the client's honest update; there is no backdoor in it.
    """
    return _multiplied(factor)


@register("attack", "label_flip")
def label_flip() -> Attack:
    """Attackers train on wrong labels: class c of D is taken for class ``D - 1 - c``.

    Example:
        >>> import torch
        >>> label_flip().labels(torch.tensor([0, 1, 9]), 10)
        tensor([9, 8, 0])

    Source:
        M. Fang, X. Cao, J. Jia, N. Z. Gong, *Local Model Poisoning Attacks to Byzantine-Robust Federated Learning*,
        USENIX Security 2020, the label flipping attack of the experiments.
    """
    return Attack(labels=lambda labels, num_classes: num_classes - 1 - labels)


def choose_attackers(num_clients: int, share: float, seeds: Seeds) -> frozenset[int]:
    """Which clients attack: ``share * num_clients`` of them, rounded down, uniformly, the same in every round.

    Raises:
        ConfigError: that is nobody.
    """
    # A product such as 0.29 * 100 may fall just short of the whole number that it stands for.
    count = int(share * num_clients + 1e-9)
    if count == 0:
        raise ConfigError(
            f"attack.share is {share}, of {num_clients} clients that is nobody; use {1 / num_clients:.3g} or more"
        )
    return frozenset(seeds.numpy("attackers").permutation(num_clients)[:count].tolist())


def _multiplied(factor: float) -> Attack:
    return Attack(
        upload=lambda streams: {stream: scale(params, factor) for stream, params in streams.items()}
    )

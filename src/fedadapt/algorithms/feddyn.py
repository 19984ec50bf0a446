"""FedDyn."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import (
    Algorithm,
    Gathered,
    LocalRule,
    Origin,
    ServerRule,
    Work,
    add_where,
    equally,
)
from fedadapt.params import Params, Streams, add, zeros_like
from fedadapt.registry import register
from fedadapt.training.local import Gradient


@register("algorithm", "feddyn")
def feddyn(alpha: Annotated[float, Field(gt=0)] = 0.01) -> Algorithm:
    """FedDyn: each client's loss is bent so that all clients together end where their joint loss does.

    Clients step along ``g - d_k + alpha (w - w^t)`` and keep ``d_k <- d_k - alpha (w_k - w^t)``. The server keeps
    ``h <- h - alpha / N * sum_k (w_k - w^t)`` over the clients that answered, N registered, and sets w to the equal
    mean of their models less ``h / alpha``.

    Args:
        alpha: strength of the spring. Towards 0 the first round is that of the equal mean, `h / alpha` aside.

    Example:
        >>> import torch
        >>> from dataclasses import replace
        >>> from fedadapt.algorithms import Update
        >>> technique = replace(feddyn(alpha=0.5), num_clients=4)
        >>> state, ones = technique.init({"w": torch.zeros(1)}), {"delta": {"w": torch.ones(1)}}
        >>> after = technique.step(state, [Update(0, 1, 1, ones)])
        >>> after["drift"]["w"], after["model"]["w"]  # -0.5 / 4, and 1 + 0.125 / 0.5
        (tensor([-0.1250]), tensor([1.2500]))

    Source:
        D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama, *Federated Learning Based
        on Dynamic Regularization*, ICLR 2021, algorithm 1.

    Differs:
        Clients take the steps that ``[train]`` says instead of solving exactly.
    """

    def gradient(plain: Gradient, work: Work) -> Gradient:
        def bent(point: Params) -> Params:
            away = add({n: t for n, t in point.items() if n in work.start}, work.start, alpha=-1.0)
            return add_where(add_where(plain(point), work.memory["dual"], alpha=-1.0), away, alpha=alpha)

        return bent

    def finish(work: Work) -> tuple[Streams, Streams]:
        delta = add(work.end, work.start, alpha=-1.0)
        return {"delta": delta}, {"dual": add(work.memory["dual"], delta, alpha=-alpha)}

    def optimise(state: Streams, delta: Params, gathered: Gathered) -> Streams:
        share = len(gathered.updates) / gathered.num_clients
        drift = add(state["drift"], delta, alpha=-alpha * share)
        model = add(add(state["model"], delta), drift, alpha=-1 / alpha)
        return {"model": model, "drift": drift}

    return Algorithm(
        "FedDyn",
        local=LocalRule(
            gradient=gradient, finish=finish, memory={"dual": Origin.ZEROS}, reads_path=True, books=True
        ),
        server=ServerRule(
            weigh=equally, optimise=optimise, streams=lambda model: {"drift": zeros_like(model)}
        ),
    )

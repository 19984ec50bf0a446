"""SCAFFOLD."""

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
    add_delta,
    add_where,
    equally,
)
from fedadapt.algorithms.path import needs_sgd, path_length
from fedadapt.params import Params, Streams, add, scale, weighted_mean, zeros_like
from fedadapt.registry import register
from fedadapt.training.local import Gradient
from fedadapt.training.optimizers import across


@register("algorithm", "scaffold")
def scaffold(lr: Annotated[float, Field(gt=0)] = 1.0) -> Algorithm:
    """SCAFFOLD: control variates take the drift of each client out of its gradients.

    Clients step along ``g - c_k + c`` and keep ``c_k <- c_k - c + (w^t - w_k) / (a_k * local rate)``, where a_k is the
    number of local steps. The server adds ``lr`` times the equal mean of the updates, and moves c by the sum of what
    changed in the c_k, over the number of registered clients.

    Args:
        lr: the server's rate. In the first round, when all c are zero, 1 is the equal mean.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> state = scaffold().init({"w": torch.zeros(1)})
        >>> streams = {"delta": {"w": torch.ones(1)}, "control_delta": {"w": torch.full((1,), 6.0)}}
        >>> from dataclasses import replace
        >>> replace(scaffold(), num_clients=3).step(state, [Update(0, 1, 1, streams)])["control"]["w"]
        tensor([2.])

    Source:
        S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, *SCAFFOLD: Stochastic Controlled
        Averaging for Federated Learning*, ICML 2020, algorithm 1, option II.

    Differs:
        With local momentum, which the paper does not have, a_k is `path_length`, so that c_k still has the size of
        one gradient.
    """

    def optimise(state: Streams, delta: Params, gathered: Gathered) -> Streams:
        return add_delta(state, scale(delta, lr), gathered)

    return Algorithm(
        "SCAFFOLD",
        local=LocalRule(
            gradient=_controlled,
            finish=_finish,
            downloads=("control",),
            uploads=("control_delta",),
            memory={"control": Origin.ZEROS},
            reads_path=True,
            books=True,
        ),
        server=ServerRule(
            weigh=equally,
            # At rate 1 the step is left to whoever else wants it, such as a server's optimiser.
            optimise=add_delta if lr == 1 else optimise,
            fold=_fold,
            streams=lambda model: {"control": zeros_like(model)},
            reads_updates=True,
        ),
        checks=(needs_sgd,),
    )


def _controlled(plain: Gradient, work: Work) -> Gradient:
    correction = {n: work.download["control"][n] - own for n, own in work.memory["control"].items()}

    def controlled(point: Params) -> Params:
        return add_where(plain(point), correction, alpha=1.0)

    return controlled


def _finish(work: Work) -> tuple[Streams, Streams]:
    change = add(work.start, work.end, alpha=-1.0)
    seen = {n: t / across((path_length(work) * work.lr).to(t), t) for n, t in change.items()}
    delta = add(seen, work.download["control"], alpha=-1.0)
    control = add(work.memory["control"], delta)
    return {"delta": scale(change, -1.0), "control_delta": delta}, {"control": control}


def _fold(state: Streams, gathered: Gathered) -> Streams:
    deltas = [update.streams["control_delta"] for update in gathered.updates]
    share = len(deltas) / gathered.num_clients
    mean = weighted_mean((1.0, delta) for delta in deltas)
    return {"control": {n: t + share * mean[n] for n, t in state["control"].items()}}

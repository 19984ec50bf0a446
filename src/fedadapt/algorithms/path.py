"""The way from a round's start to its end, read as a sum of gradients."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fedadapt.algorithms.algorithm import Setting, Work


def path_length(work: Work) -> Float[Tensor, " K"]:
    """How many gradients, weighted, the way of each client is the sum of.

    SGD with momentum goes ``start - end = lr * sum_t a_t g_t``, where ``a_t = (1 - m^(T - t)) / (1 - m)`` for
    t = 0 ... T - 1, since a gradient goes on in the momentum of all later steps. The length is the sum of the
    a_t, ``(T - m (1 - m^T) / (1 - m)) / (1 - m)``, which without momentum is the number T of steps.

    Args:
        work: a round's work; the momentum m is that of its configuration.

    Source:
        J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, *Tackling the Objective Inconsistency Problem in
        Heterogeneous Federated Optimization*, NeurIPS 2020, section 4.
    """
    steps, momentum = work.num_steps.double(), work.config.momentum
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def needs_sgd(setting: Setting) -> str | None:
    """The way is a sum of gradients only if the optimiser does not rescale them."""
    if setting.train.optimizer == "sgd":
        return None
    return (
        "it reads gradients off what training changed, and train.optimizer is "
        f"{setting.train.optimizer!r}, which rescales them; use 'sgd'"
    )


def needs_fixed_statistics(setting: Setting) -> str | None:
    """A rescaled running variance is that of no batch."""
    if not setting.moving:
        return None
    return "it rescales updates, and running statistics that are averaged must not be; use norms 'frozen' or 'local'"

"""FedPer."""

from __future__ import annotations

from fedadapt.algorithms.algorithm import Algorithm, LocalRule, Setting
from fedadapt.params import Group
from fedadapt.registry import register


@register("algorithm", "fedper")
def fedper(kept: frozenset[Group] = frozenset({Group.HEAD})) -> Algorithm:
    """FedPer: each client keeps a head of its own on the shared rest.

    Args:
        kept: groups that clients keep and never send, of ``adapter``, ``norm_affine`` and ``head``; none is FedAvg.

    Example:
        >>> sorted(fedper().local.kept)
        [<Group.HEAD: 'head'>]

    Source:
        M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary, *Federated Learning with Personalization Layers*, 2019,
        algorithms 1 and 2.

    Differs:
        The head starts as the model's own instead of at random for each client. In the global model the head stays at
        that start, so that its accuracy says little; ``data.local_test_fraction`` measures each client's own.
    """

    def trains_them(setting: Setting) -> str | None:
        missing = sorted(group.value for group in kept - setting.trained)
        return (
            f"clients are to keep {', '.join(missing)}, which is not trained; train another adapter"
            if missing
            else None
        )

    return Algorithm("FedPer", local=LocalRule(kept=kept), checks=(trains_them,))

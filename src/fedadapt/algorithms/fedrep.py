"""FedRep."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, LocalRule, Phase, Setting
from fedadapt.params import Group
from fedadapt.registry import register

_HEAD = frozenset({Group.HEAD})
_BODY = frozenset(Group) - _HEAD


@register("algorithm", "fedrep")
def fedrep(head_epochs: Annotated[int, Field(ge=0)] = 1) -> Algorithm:
    """FedRep: each client keeps a head of its own; in a round it first trains the head, then the shared rest.

    Args:
        head_epochs: of ``train.epochs``, for the head with the rest as it came; the others are for the rest with that
            head. 0 never trains the head.

    Example:
        >>> [(len(phase.groups), phase.epochs) for phase in fedrep(head_epochs=3).local.phases]
        [(1, 3), (4, None)]

    Source:
        L. Collins, H. Hassani, A. Mokhtari, S. Shakkottai, *Exploiting Shared Representations for Personalized Federated
        Learning*, ICML 2021, algorithm 1.

    Differs:
        The head starts as the model's own instead of at random for each client; see `fedper`.
    """

    def leaves_epochs(setting: Setting) -> str | None:
        if setting.train.epochs > head_epochs:
            return None
        return (
            f"head_epochs is {head_epochs} of train.epochs {setting.train.epochs}, which leaves none for the shared rest; "
            f"set train.epochs to {head_epochs + 1} or more"
        )

    def trains_a_head(setting: Setting) -> str | None:
        return None if Group.HEAD in setting.trained else "no head is trained; train an adapter that has one"

    return Algorithm(
        "FedRep",
        local=LocalRule(kept=_HEAD, phases=(Phase(_HEAD, head_epochs), Phase(_BODY))),
        checks=(trains_a_head, leaves_epochs),
    )

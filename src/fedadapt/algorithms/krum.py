"""Krum and Multi-Krum."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, Gathered, ServerRule, Setting
from fedadapt.algorithms.robust import krum_scores, mean_of, squared_distances
from fedadapt.params import Params
from fedadapt.registry import register

Count = Annotated[int, Field(ge=0)]


@register("algorithm", "krum")
def krum(attackers: Count = 1) -> Algorithm:
    """Krum: the server takes the one update that is closest to most others.

    It has the smallest sum of squared distances to its ``n - attackers - 2`` nearest neighbours.

    Args:
        attackers: f, how many of a round's clients may lie; n must be at least ``2 f + 3``. A round with fewer
            updates changes nothing.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = krum(attackers=1)
        >>> state = technique.init({"w": torch.zeros(1)})
        >>> deltas = (1.0, 1.5, 2.0, 2.75, -900.0)
        >>> updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate(deltas)]
        >>> technique.step(state, updates)["model"]["w"]  # its two nearest are 0.5 away
        tensor([1.5000])

    Source:
        P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, *Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent*, NeurIPS 2017, section 4.
    """
    return _krum("Krum", attackers, 1)


@register("algorithm", "multi_krum")
def multi_krum(attackers: Count = 1, selected: Annotated[int, Field(ge=1)] | None = None) -> Algorithm:
    """Multi-Krum: the equal mean of the several updates that Krum would rather take.

    Args:
        attackers: as for `krum`.
        selected: how many updates are averaged, fewer where fewer came; None for all but `attackers`. With no attackers
            that is all.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms import Update
        >>> technique = multi_krum(attackers=1, selected=2)
        >>> state = technique.init({"w": torch.zeros(1)})
        >>> deltas = (1.0, 1.5, 2.0, 2.75, -900.0)
        >>> updates = [Update(k, 1, 1, {"delta": {"w": torch.tensor([d])}}) for k, d in enumerate(deltas)]
        >>> technique.step(state, updates)["model"]["w"]  # 1.5 scores 0.5; 2.0 scores 0.25 + 0.5625
        tensor([1.7500])

    Source:
        P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, *Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent*, NeurIPS 2017, section 4.
    """
    return _krum("Multi-Krum", attackers, selected)


def _krum(name: str, attackers: int, selected: int | None) -> Algorithm:
    least = 2 * attackers + 3

    def aggregate(gathered: Gathered) -> Params:
        scores = krum_scores(squared_distances(gathered), attackers)
        sound = len(scores) - attackers
        wanted = sound if selected is None else min(selected, sound)
        # Stable, so that of equals the first client is taken on every machine.
        return mean_of(gathered, scores.argsort(stable=True)[:wanted].tolist())

    def few_enough(setting: Setting) -> str | None:
        if selected is None or selected <= setting.cohort - attackers:
            return None
        return (
            f"selected is {selected} of {setting.cohort} clients, {attackers} of whom may lie; "
            f"use at most {setting.cohort - attackers}"
        )

    return Algorithm(name, server=ServerRule(aggregate=aggregate, least=least), checks=(few_enough,))

"""The exchange plan: for every tensor, its group, whether it is trained, and whether it travels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

import torch

from fedadapt.params import Group, Params


class Travel(StrEnum):
    """What happens to a tensor in a round."""

    SHARED = "shared"
    KEPT = "kept"
    FROZEN = "frozen"


class Model(Protocol):
    """The little that a plan needs to know of a model."""

    groups: dict[str, Group]
    start: Params
    moving: list[str]


@dataclass(frozen=True)
class PlanRow:
    """One tensor that changes in training.

    Args:
        name: in the model.
        group: what it is.
        shape: without client axis.
        trained: by gradient; otherwise it moves with the batches.
        travel: shared with the server, or kept by the client.
    """

    name: str
    group: Group
    shape: tuple[int, ...]
    trained: bool
    travel: Travel

    @property
    def num_values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GroupSummary:
    """What a plan says of one group: how much of it there is and what happens to it."""

    group: Group
    trained: bool
    travel: Travel
    num_tensors: int
    num_values: int

    @property
    def num_bytes(self) -> int:
        """Bytes a message holds of this group when sent as fp32; 0 if it does not travel."""
        return 4 * self.num_values if self.travel is Travel.SHARED else 0


@dataclass(frozen=True)
class ExchangePlan:
    """What is trained and what travels, agreed by all parties through one digest.

    Args:
        rows: the tensors that change, in the order of the model.
        frozen: values of each group that do not change.
    """

    rows: tuple[PlanRow, ...]
    frozen: Mapping[Group, int]

    def layout(self, group: Group | None = None) -> dict[str, torch.Size]:
        """Names and shapes of the shared tensors, of one group or of all, in the order of the model."""
        return dict(self._layouts.get(group, {}))

    def sent(self) -> dict[str, torch.Size]:
        """Names and shapes of the shared tensors in the order they are sent: group by group."""
        return dict(self._sent)

    @cached_property
    def _sent(self) -> dict[str, torch.Size]:
        return {name: shape for group in self.groups() for name, shape in self._layouts[group].items()}

    def groups(self) -> list[Group]:
        """The groups that travel, in the order their sections are sent."""
        return list(self._groups)

    @cached_property
    def _groups(self) -> list[Group]:
        return [group for group in Group if group in self._layouts]

    @cached_property
    def _layouts(self) -> dict[Group | None, dict[str, torch.Size]]:
        """The layout of each group that travels, and under None that of all; every message asks for them."""
        layouts: dict[Group | None, dict[str, torch.Size]] = {}
        for row in self.rows:
            if row.travel is Travel.SHARED:
                for group in (None, row.group):
                    layouts.setdefault(group, {})[row.name] = torch.Size(row.shape)
        return layouts

    def kept(self) -> list[str]:
        """Names of the tensors that clients keep."""
        return [row.name for row in self.rows if row.travel is Travel.KEPT]

    @property
    def digest(self) -> bytes:
        """16 bytes over the name, shape and group of every shared tensor, in order."""
        text = "\n".join(f"{r.name} {r.shape} {r.group}" for r in self.rows if r.travel is Travel.SHARED)
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def summary(self) -> list[GroupSummary]:
        """One line for each group and fate."""
        kinds: dict[tuple[Group, bool, Travel], list[int]] = {}
        for row in self.rows:
            kinds.setdefault((row.group, row.trained, row.travel), []).append(row.num_values)
        changing = [GroupSummary(*kind, len(sizes), sum(sizes)) for kind, sizes in kinds.items()]
        still = [GroupSummary(g, False, Travel.FROZEN, 0, n) for g, n in self.frozen.items() if n]
        return sorted(changing + still, key=lambda s: list(Group).index(s.group))

    @cached_property
    def num_shared_bytes(self) -> int:
        """Bytes of all shared tensors as fp32."""
        return sum(summary.num_bytes for summary in self.summary())


def make_plan(model: Model, kept: frozenset[Group], num_frozen: Mapping[Group, int]) -> ExchangePlan:
    """The plan of a model under a norm policy.

    Args:
        model: with its adapter attached.
        kept: the groups that clients keep to themselves.
        num_frozen: how many values of each group do not change, for the record.
    """
    rows = tuple(
        PlanRow(
            name,
            model.groups[name],
            tuple(tensor.shape),
            name not in model.moving,
            Travel.KEPT if model.groups[name] in kept else Travel.SHARED,
        )
        for name, tensor in model.start.items()
    )
    return ExchangePlan(rows, dict(num_frozen))

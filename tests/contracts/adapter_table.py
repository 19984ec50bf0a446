"""The table of adapters: one row is all that a new one takes to come under every law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import pytest

from fedadapt.adapters import Site
from fedadapt.params import Group

TRAINED = {Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD}


@dataclass(frozen=True)
class Case:
    """One adapter, and what it promises.

    Args:
        name: as registered.
        count: adapter values at a site.
        trains: the groups that change under frozen norms.
        options: of the adapter.
        exact_start: whether the adapted network starts as the pretrained one.
        linear: whether the mean of adapters is the adapter of the mean map.
        merges: whether it folds into the weight of its layer.
        sits: whether it adds branches.
    """

    name: str
    count: Callable[[Site], int] = lambda site: 0
    trains: set[Group] = field(default_factory=lambda: TRAINED)
    options: dict[str, Any] = field(default_factory=dict)
    exact_start: bool = True
    linear: bool = True
    merges: bool = True
    sits: bool = True

    def with_sites(self, **sites):
        """The options with others of its placement."""
        return self.options | {"sites": self.options.get("sites", {}) | sites}


def full_1x1(site):
    """A matrix from the channels in to the channels out, within each group."""
    return site.out_channels * site.in_per_group


def rank_of(site, rank):
    """A rank no larger than what it connects."""
    return min(rank, site.in_per_group, site.out_per_group)


TABLE = [
    Case("parallel", full_1x1),
    Case("parallel", full_1x1, options={"init": "rebuffi"}, exact_start=False),
    Case("parallel", full_1x1, options={"sites": {"scaling": -0.5}}),
    Case(
        "grouped",
        lambda site: full_1x1(site) // gcd(2, site.in_per_group, site.out_per_group),
        options={"groups": 2},
    ),
    Case(
        "grouped",
        lambda site: full_1x1(site) // gcd(2, site.in_per_group, site.out_per_group),
        options={"groups": 2, "init": "rebuffi"},
        exact_start=False,
    ),
    Case("diagonal", lambda site: site.out_channels),
    Case("diagonal", lambda site: site.out_channels, options={"init": "rebuffi"}, exact_start=False),
    Case(
        "low_rank",
        lambda site: rank_of(site, 2) * (site.in_channels + site.out_channels),
        options={"rank": 2, "sites": {"scaling": 2.0}},
        linear=False,
    ),
    Case(
        "low_rank",
        lambda site: rank_of(site, 2) * (site.in_channels + site.out_channels),
        options={"rank": 2, "init": "orthogonal"},
        linear=False,
    ),
    Case("seeded", lambda site: rank_of(site, 2) * site.out_channels, options={"rank": 2}),
    Case(
        "seeded",
        lambda site: rank_of(site, 2) * site.out_channels,
        options={"rank": 2, "init": "rebuffi"},
        exact_start=False,
    ),
    Case("series", lambda site: site.out_channels * site.out_per_group),
    Case(
        "series",
        lambda site: site.out_channels * site.out_per_group,
        options={"init": "rebuffi"},
        exact_start=False,
    ),
    Case(
        "lora",
        lambda site: rank_of(site, 2) * (site.in_channels * site.kernel_size[0] ** 2 + site.out_channels),
        options={"rank": 2},
        linear=False,
    ),
    Case(
        "bottleneck",
        lambda site: rank_of(site, 2) * (site.in_channels + site.out_channels + 1),
        options={"rank": 2, "sites": {"layers": ("conv", "linear")}},
        linear=False,
        merges=False,
    ),
    Case("bias", lambda site: site.out_channels),
    Case("norm_head", trains={Group.NORM_AFFINE, Group.HEAD}, sits=False),
    Case("head", trains={Group.HEAD}, sits=False),
    Case("full", trains={Group.BACKBONE, Group.NORM_AFFINE, Group.HEAD}, sits=False),
]


def name_of(case):
    """The name of a row in a test's name."""
    return "-".join([case.name, *(str(value) for value in case.options.values())])


CASES = pytest.mark.parametrize("case", TABLE, ids=name_of)
FOLDING = pytest.mark.parametrize("case", [case for case in TABLE if case.sits and case.merges], ids=name_of)
BRANCHES = pytest.mark.parametrize("case", [case for case in TABLE if case.sits], ids=name_of)

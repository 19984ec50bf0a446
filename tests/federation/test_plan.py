"""A plan says for every tensor what it is, whether it is trained, and whether it travels."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import tiny_model

from fedadapt.adapters import attach
from fedadapt.federation.plan import Travel, make_plan
from fedadapt.params import Group
from fedadapt.registry import create


def plan_of(adapter="parallel", norms="frozen", **options):
    """The plan of a tiny model."""
    model = tiny_model(adapter, norms, **options)
    return make_plan(model, model.policy.kept, {Group.BACKBONE: 1000, Group.NORM_STATISTICS: 0})


def test_the_numbers_of_a_known_network():
    """ResNet-26 with 10 classes sends 655,530 values, 2,622,120 bytes, in three groups."""
    generator = torch.Generator().manual_seed(0)
    backbone = create("backbone", "resnet26", {"weights": "random"})(10, generator)
    model = attach(backbone, create("adapter", "parallel"), create("norm policy", "frozen"), generator)
    plan = make_plan(model, model.policy.kept, {})
    assert plan.groups() == [Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD]
    assert [(s.num_values, s.num_bytes) for s in plan.summary()] == [
        (645_216, 2_580_864),
        (7_744, 30_976),
        (2_570, 10_280),
    ]
    assert plan.num_shared_bytes == 2_622_120


@pytest.mark.parametrize(
    ("norms", "travelling"),
    [
        ("frozen", [Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD]),
        ("local", [Group.ADAPTER, Group.HEAD]),
        ("averaged", [Group.ADAPTER, Group.NORM_AFFINE, Group.NORM_STATISTICS, Group.HEAD]),
    ],
)
def test_norm_policies_decide_what_travels(norms, travelling):
    """Each policy shares, keeps or freezes norms as it says."""
    plan = plan_of(norms=norms)
    assert plan.groups() == travelling
    kept = {row.group for row in plan.rows if row.travel is Travel.KEPT}
    assert kept == ({Group.NORM_AFFINE, Group.NORM_STATISTICS} if norms == "local" else set())
    assert set(plan.kept()) == {row.name for row in plan.rows if row.group in kept}
    assert all(row.trained != (row.group is Group.NORM_STATISTICS) for row in plan.rows)


def test_layouts_follow_the_rows():
    """The layouts of the groups together are the layout of all, and hold every shared byte."""
    plan = plan_of(norms="averaged")
    by_group = [name for group in plan.groups() for name in plan.layout(group)]
    assert sorted(by_group) == sorted(plan.layout())
    assert plan.num_shared_bytes == 4 * sum(shape.numel() for shape in plan.layout().values())


def test_what_is_frozen_is_listed_but_weighs_nothing():
    """Values that do not change are counted and have no bytes; an empty group is left out."""
    summary = plan_of().summary()
    (frozen,) = [s for s in summary if s.travel is Travel.FROZEN]
    assert (frozen.group, frozen.num_values, frozen.num_bytes, frozen.trained) == (
        Group.BACKBONE,
        1000,
        0,
        False,
    )


def test_the_digest_is_that_of_what_travels():
    """It is the same for the same layout, and another for other shapes, groups or policies."""
    assert plan_of().digest == plan_of(init="rebuffi", seed=4).digest
    digests = {
        plan_of(a, n).digest for a in ("parallel", "norm_head", "head") for n in ("frozen", "averaged")
    }
    assert len(digests | {plan_of(norms="local").digest}) == 7
    assert all(len(digest) == 16 for digest in digests)

"""What holds for every adapter; a new one is a row of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from contracts.cases import jiggle, random_images, tiny_model

from fedadapt.adapters import find_sites, load_adapter, merge, save_adapter
from fedadapt.params import Group, expand
from fedadapt.registry import create, names


def ninth(conv):
    """A full 1x1 kernel beside every 3x3: a ninth of its weights."""
    return conv.weight.numel() // 9


@dataclass(frozen=True)
class Case:
    """One adapter, and what it promises.

    Args:
        name: as registered.
        exact_start: whether the adapted network starts as the pretrained one.
        trains: the groups that change under frozen norms.
        count: adapter values beside one 3x3 convolution.
        options: of the adapter.
    """

    name: str
    exact_start: bool
    trains: set[Group]
    count: Callable[[Any], int] = lambda conv: 0
    options: dict[str, Any] = field(default_factory=dict)


TABLE = [
    Case("parallel", True, {Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD}, ninth),
    Case("parallel", False, {Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD}, ninth, {"init": "rebuffi"}),
    Case("norm_head", True, {Group.NORM_AFFINE, Group.HEAD}),
    Case("head", True, {Group.HEAD}),
    Case("full", True, {Group.BACKBONE, Group.NORM_AFFINE, Group.HEAD}),
]
CASES = pytest.mark.parametrize(
    "case", TABLE, ids=lambda case: "-".join([case.name, *map(str, case.options.values())])
)


def test_the_table_is_complete():
    """Every registered adapter is under contract."""
    assert {case.name for case in TABLE} == set(names("adapter"))


@CASES
@pytest.mark.parametrize("norms", names("norm policy"))
def test_the_start_is_the_pretrained_network_where_that_is_promised(case, norms):
    """The logits before any training are the backbone's, or clearly others."""
    model = tiny_model(case.name, norms, **case.options)
    images = random_images(4)
    with torch.inference_mode():
        ours, theirs = model(expand(model.start, 1), images), model.backbone.module(images)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5) == case.exact_start


@CASES
def test_it_trains_its_groups_and_no_other(case):
    """Every tensor of the groups it trains gets a gradient; nothing else changes or requires one."""
    model = tiny_model(case.name, **case.options)
    assert {model.groups[name] for name in model.start} == case.trains
    params = expand(jiggle(model.start), 1)
    for tensor in params.values():
        tensor.requires_grad_()
    model(params, random_images(4)).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in params.values())
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert all(parameter.grad is None for parameter in model.backbone.module.parameters())


@CASES
def test_its_size_follows_its_formula(case):
    """The adapter's values are the sum of its count over all 3x3 convolutions."""
    model = tiny_model(case.name, **case.options)
    found = sum(t.numel() for n, t in model.start.items() if model.groups[n] is Group.ADAPTER)
    assert found == sum(case.count(site.module) for site in find_sites(model.backbone.module))


@CASES
def test_its_state_survives_a_file(case, tmp_path):
    """What is saved comes back, and computes the same."""
    model = tiny_model(case.name, "averaged", **case.options)
    params = jiggle(model.start)
    save_adapter(model, params, tmp_path / "a.safetensors")
    loaded = load_adapter(model, tmp_path / "a.safetensors")
    assert list(loaded) == list(params)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in params.items())


@CASES
def test_if_it_has_a_kernel_it_merges(case):
    """Whatever says that it is a 1x1 kernel, or sits nowhere, exports as a stock model."""
    adapter = create("adapter", case.name, case.options)
    model = tiny_model(case.name, **case.options)
    assert (adapter.pointwise is not None) == bool(model.sites)
    merged = merge(model, jiggle(model.start, scale=0.05))
    assert [type(m) for m in merged.modules()] == [type(m) for m in model.backbone.module.modules()]

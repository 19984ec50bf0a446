"""What holds for every adapter in a network; a new one is a row of the table."""

from __future__ import annotations

import pytest
import torch
from contracts.adapter_table import BRANCHES, CASES, TABLE
from contracts.cases import jiggle, random_images, tiny_model, zoo_backbone

from fedadapt.adapters import attach, load_adapter, merge, save_adapter, unmerge
from fedadapt.params import Group, expand, pick, stack
from fedadapt.registry import create, names


def zoo_model(case, norms="frozen"):
    """The adapter on convolutions of every geometry."""
    options = case.with_sites(kernel_sizes=(3, 5, 7)) if case.sits else case.options
    adapter, policy = create("adapter", case.name, options), create("norm policy", norms)
    return attach(zoo_backbone(), adapter, policy, torch.Generator().manual_seed(0))


def test_the_table_is_complete():
    """Every registered adapter is under contract, and promises in its own code what the table says."""
    assert {case.name for case in TABLE} == set(names("adapter"))
    for case in TABLE:
        adapter = create("adapter", case.name, case.options)
        merges = adapter.branches is None or adapter.branches.fold is not None
        assert (adapter.linear, merges, adapter.branches is not None) == (case.linear, case.merges, case.sits)


@CASES
@pytest.mark.parametrize("norms", names("norm policy"))
def test_the_start_is_the_pretrained_network_where_that_is_promised(case, norms):
    """The logits before any training are the backbone's, or clearly others."""
    for model in (tiny_model(case.name, norms, **case.options), zoo_model(case, norms)):
        images = random_images(4)
        with torch.inference_mode():
            ours, theirs = model(expand(model.start, 1), images), model.backbone.module(images)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5) == case.exact_start


@CASES
def test_it_trains_its_groups_and_no_other(case):
    """Every tensor of the groups it trains gets a gradient; nothing else changes or requires one."""
    model = zoo_model(case)
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
    """The adapter's values are the sum of its count over its sites, and the head and norms have no more."""
    zoo = zoo_model(case)
    assert bool(zoo.sites) == case.sits
    for model in (zoo, tiny_model(case.name, **case.options)):
        found = sum(t.numel() for n, t in model.start.items() if model.groups[n] is Group.ADAPTER)
        assert found == sum(case.count(site) for site in model.sites)


@CASES
def test_any_number_of_clients_gives_each_what_it_gets_alone(case):
    """Logits and gradients of 2 and 7 clients, each with its own tensors, are those of K = 1."""
    model = zoo_model(case)
    images = random_images(14)

    def run(params, some):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
        logits = model(leaves, some)
        grads = torch.autograd.grad(logits.square().sum(), list(leaves.values()))
        return logits.detach(), dict(zip(leaves, grads, strict=True))

    for clients in (2, 7):
        if clients > (model.max_clients or clients):
            continue
        own = [jiggle(model.start, seed) for seed in range(clients)]
        logits, gradients = run(stack(own), images)
        each = 14 // clients
        for place, params in enumerate(own):
            here = slice(place * each, (place + 1) * each)
            alone, expected = run({name: tensor[None] for name, tensor in params.items()}, images[here])
            torch.testing.assert_close(logits[here], alone, rtol=1e-4, atol=1e-4)
            for name, tensor in pick(gradients, place).items():
                torch.testing.assert_close(tensor, expected[name][0], rtol=1e-3, atol=1e-3)


@CASES
def test_its_state_survives_a_file(case, tmp_path):
    """What is saved comes back, bit for bit and in its order, so that it computes the same."""
    for model in (tiny_model(case.name, "averaged", **case.options), zoo_model(case, "averaged")):
        params = jiggle(model.start)
        save_adapter(model, params, tmp_path / "a.safetensors")
        loaded = load_adapter(model, tmp_path / "a.safetensors")
        assert list(loaded) == list(params)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in params.items())


@CASES
def test_it_merges_into_a_stock_network_and_out_again(case):
    """Where it promises to, it folds into every geometry; afterwards the backbone's bits can be restored."""
    model = zoo_model(case)
    if not case.merges:
        assert model.adapter.branches.fold is None
        return
    params = jiggle(model.start, scale=0.05)
    merged = merge(model, params)
    assert [type(m) for m in merged.modules()] == [type(m) for m in model.backbone.module.modules()]
    images = random_images(3)
    with torch.inference_mode():
        ours, theirs = merged(images), model(expand(params, 1), images)
        assert not torch.allclose(theirs, model.backbone.module(images), rtol=1e-3)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    unmerge(merged, model)
    restored, original = merged.state_dict(), model.backbone.module.state_dict()
    assert all(torch.equal(restored[name], original[name]) for name in original)


@BRANCHES
def test_the_same_seed_gives_the_same_branches_wherever_they_sit(case):
    """A branch depends on the seed and the name of its site, not on which other sites have one."""
    adapters = [
        create("adapter", case.name, case.with_sites(kernel_sizes=(3, 5, 7), **more))
        for more in ({}, {"last": 2})
    ]
    policy = create("norm policy", "frozen")
    whole, last = (
        attach(zoo_backbone(), adapter, policy, torch.Generator().manual_seed(5)) for adapter in adapters
    )
    assert 2 == len(last.sites) < len(whole.sites)
    other = attach(zoo_backbone(), adapters[0], policy, torch.Generator().manual_seed(6))
    mine, theirs = dict(whole.module.named_buffers()), dict(last.module.named_buffers())
    fixed = [name for name in theirs if ".adapter." in name]
    assert all(torch.equal(mine[name], theirs[name]) for name in fixed)
    assert all(torch.equal(whole.start[name], tensor) for name, tensor in last.start.items())
    if fixed:
        assert whole.digest != other.digest

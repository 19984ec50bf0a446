"""What holds for the branch of every adapter beside a single convolution of any shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from contracts.adapter_table import BRANCHES, FOLDING
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fedadapt.adapters import find_sites
from fedadapt.registry import create


@dataclass(frozen=True)
class Shape:
    """The geometry of a convolution."""

    kernel: int
    stride: int
    dilation: int
    groups: int
    wide: int
    mode: str
    bias: bool


SHAPES = st.builds(
    Shape,
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2, 4]),
    wide=st.sampled_from([4, 8, 12]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    bias=st.booleans(),
)


def branch_at(case, shape, clients, seed=0):
    """A convolution with random weights, what takes its place, and the branch tensors of several clients."""
    generator = torch.Generator().manual_seed(seed)
    conv = nn.utils.skip_init(
        nn.Conv2d, 4, shape.wide, shape.kernel, stride=shape.stride, dilation=shape.dilation,
        padding=shape.dilation * (shape.kernel - 1) // 2, groups=shape.groups, padding_mode=shape.mode,
        bias=shape.bias,
    )  # fmt: skip
    for parameter in conv.parameters():
        parameter.data.normal_(generator=generator)
    conv.requires_grad_(requires_grad=False)
    (site,) = find_sites(nn.Sequential(conv))
    adapter = create("adapter", case.name, case.options)
    assume(adapter.branches.fits(site))
    host = adapter.branches.build(site, generator)
    drawn = {
        name: torch.randn(clients, *parameter.shape[1:], generator=generator)
        for name, parameter in host.named_parameters()
        if name.startswith("adapter.")
    }
    return site, adapter.branches, host, drawn


def apply(host, tensors, x):
    """The output with these tensors."""
    return torch.func.functional_call(host, tensors, (x,))


@BRANCHES
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES, clients=st.sampled_from([1, 2, 7]))
def test_each_client_gets_what_it_gets_alone(case, shape, clients):
    """K clients together have the outputs and gradients of K = 1."""
    _, _, host, drawn = branch_at(case, shape, clients)
    x = torch.randn(2 * clients, 4, 13, 14, generator=torch.Generator().manual_seed(1))
    leaves = {name: tensor.requires_grad_() for name, tensor in drawn.items()}
    together = apply(host, leaves, x)
    gradients = torch.autograd.grad(together.square().mean(), list(leaves.values()))
    for client in range(clients):
        own = {name: t[client : client + 1].detach().requires_grad_() for name, t in drawn.items()}
        alone = apply(host, own, x[2 * client : 2 * client + 2])
        torch.testing.assert_close(together[2 * client : 2 * client + 2], alone, rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(
            gradients, torch.autograd.grad(alone.square().mean(), list(own.values())), strict=True
        ):
            torch.testing.assert_close(clients * ours[client], theirs[0], rtol=1e-3, atol=1e-3)


@BRANCHES
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES, clients=st.sampled_from([1, 3]))
def test_it_starts_as_its_layer_and_trains_what_its_formula_says(case, shape, clients):
    """Untrained it adds nothing, if that is promised; it has as many values as it says; the layer gets no gradient."""
    site, _, host, _ = branch_at(case, shape, clients)
    x = torch.randn(2 * clients, 4, 13, 14, generator=torch.Generator().manual_seed(1))
    start = {
        name: parameter.detach().expand(clients, *parameter.shape[1:]).clone().requires_grad_()
        for name, parameter in host.named_parameters()
        if name.startswith("adapter.")
    }
    assert sum(tensor[0].numel() for tensor in start.values()) == case.count(site)
    ours, theirs = apply(host, start, x), site.module(x)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5) == case.exact_start
    ours.square().sum().backward()
    assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in start.values())
    assert all(parameter.grad is None for parameter in host.parameters())


@FOLDING
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES)
def test_the_folded_weight_computes_the_same(case, shape):
    """A convolution with the folded weight and bias is the convolution with its branch."""
    site, branches, host, drawn = branch_at(case, shape, 1)
    x = torch.randn(2, 4, 13, 14, generator=torch.Generator().manual_seed(1))
    fixed = {
        name.removeprefix("adapter."): b for name, b in host.named_buffers() if name.startswith("adapter.")
    }
    branch = fixed | {name.removeprefix("adapter."): tensor[0] for name, tensor in drawn.items()}
    expected = apply(host, drawn, x)
    weight, bias = branches.fold(site, site.module.weight, site.module.bias, branch)
    assert (bias is None) == (site.module.bias is None)
    named = {"weight": weight} | ({} if bias is None else {"bias": bias})
    folded = torch.func.functional_call(site.module, named, (x,))
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=2e-4 * float(expected.abs().max()))


@BRANCHES
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES, weight=st.floats(0.1, 0.9))
def test_the_mean_of_adapters_is_the_adapter_of_the_mean_if_it_is_linear(case, shape, weight):
    """Averaging the tensors of linear adapters averages what they compute; for the others it does not."""
    _, _, host, drawn = branch_at(case, shape, 2)
    x = torch.randn(1, 4, 13, 14, generator=torch.Generator().manual_seed(1))
    one, other = ({name: t[k : k + 1] for name, t in drawn.items()} for k in (0, 1))
    mixed = {name: weight * one[name] + (1 - weight) * other[name] for name in drawn}
    expected = weight * apply(host, one, x) + (1 - weight) * apply(host, other, x)
    close = torch.allclose(
        apply(host, mixed, x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )
    assert close == case.linear

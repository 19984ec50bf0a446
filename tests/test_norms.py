"""Batch norm on the client axis computes what torch's batch norm computes for each client alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedadapt.norms import ClientBatchNorm, Pass
from fedadapt.params import Group
from fedadapt.registry import create


def make_norm(channels=3, seed=0):
    """A batch norm whose four vectors are all non-trivial."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.normal_(generator=generator)
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.3, 3, generator=generator)
    return norm


def test_policies_keep_what_they_say():
    """Frozen statistics do not move; only the local policy keeps tensors with the client."""
    policies = {name: create("norm policy", name) for name in ("frozen", "local", "averaged")}
    assert {n: p.moving for n, p in policies.items()} == {"frozen": False, "local": True, "averaged": True}
    assert policies["local"].kept == {Group.NORM_AFFINE, Group.NORM_STATISTICS}
    assert policies["frozen"].kept == policies["averaged"].kept == frozenset()


@pytest.mark.parametrize("moving", [False, True])
def test_in_evaluation_it_is_the_norm_it_stands_for(moving):
    """With the running statistics the output is torch's in eval mode."""
    norm = make_norm().eval()
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ClientBatchNorm(norm, moving=moving, pass_=Pass())(x), norm(x))


@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any),
    side=st.integers(2, 3),
    momentum=st.sampled_from([0.1, 0.4, None]),
)
def test_moving_statistics_are_those_of_each_clients_real_samples(counts, side, momentum):
    """Outputs and running values equal torch's for each client alone; a client without samples does not move."""
    width = max(counts)
    pass_ = Pass()
    pass_.training = True
    pass_.mask = torch.tensor([[place < count for place in range(width)] for count in counts])
    source = make_norm()
    source.momentum = momentum
    ours = ClientBatchNorm(source, moving=True, pass_=pass_)
    ours.running_mean = ours.running_mean.repeat(len(counts), 1)
    ours.running_var = ours.running_var.repeat(len(counts), 1)
    ours.weight = nn.Parameter(ours.weight.detach().repeat(len(counts), 1))
    x = torch.randn(len(counts), width, 3, side, side, generator=torch.Generator().manual_seed(2))
    y = ours(x.flatten(0, 1)).unflatten(0, (len(counts), width))
    for client, count in enumerate(counts):
        alone = make_norm().train()
        alone.momentum = 0.1 if momentum is None else momentum
        if count:
            torch.testing.assert_close(y[client, :count], alone(x[client, :count]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.running_mean[client], alone.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.running_var[client], alone.running_var, rtol=1e-4, atol=1e-5)


def test_a_norm_without_affine_starts_with_ones_and_zeros():
    """What torch leaves out is trained from the values that change nothing."""
    plain = nn.BatchNorm2d(3, affine=False).eval()
    ours = ClientBatchNorm(plain, moving=False, pass_=Pass())
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), plain(x))


def test_making_one_does_not_touch_the_norm():
    """Its tensors are copies."""
    norm = make_norm()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    ours = ClientBatchNorm(norm, moving=True, pass_=Pass())
    with torch.no_grad():
        for tensor in (ours.weight, ours.bias, ours.running_mean, ours.running_var):
            tensor.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())

"""Batch norm on the client axis computes what torch's batch norm computes for each client alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedadapt import norms
from fedadapt.norms import ClientBatchNorm, ClientNorm, Pass, affine_axis
from fedadapt.params import Group, weighted_mean
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
    policies = {name: create("norm policy", name) for name in ("frozen", "local", "averaged", "pooled")}
    moving = {n: p.moving for n, p in policies.items()}
    assert moving == {"frozen": False, "local": True, "averaged": True, "pooled": True}
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


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm3d, (6, 3, 2, 2, 2))])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_of_other_dimensions_work_alike(kind, shape, training):
    """Vectors and volumes are normalised as torch does for each client, and move its statistics."""
    norm = kind(3).train(training)
    pass_ = Pass()
    pass_.training = training
    ours = ClientBatchNorm(norm, moving=True, pass_=pass_)
    ours.running_mean, ours.running_var = ours.running_mean.repeat(2, 1), ours.running_var.repeat(2, 1)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    y = ours(x)
    for client in range(2):
        alone = kind(3).train(training)
        torch.testing.assert_close(y[3 * client : 3 * client + 3], alone(x[3 * client : 3 * client + 3]))
        torch.testing.assert_close(ours.running_var[client], alone.running_var)


class ChannelsFirst(nn.LayerNorm):
    """A layer norm over the channels of a map, as ConvNeXt has."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Activated(nn.GroupNorm):
    """A group norm that fuses an activation, as timm does."""

    def __init__(self, groups, channels):
        super().__init__(groups, channels)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class Shifted(nn.LayerNorm):
    """A norm whose weight counts from one, so that it is no plain factor."""

    def forward(self, x):
        return functional.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


@pytest.mark.parametrize(
    ("norm", "shape", "axis"),
    [
        (nn.LayerNorm(4), (6, 5, 4), 2),
        (nn.LayerNorm(4, bias=False), (6, 4), 1),
        (nn.LayerNorm(4), (6, 4, 4, 4), 3),
        (nn.RMSNorm(4), (6, 5, 4), 2),
        (nn.GroupNorm(2, 4), (6, 4, 3, 3), 1),
        (nn.GroupNorm(2, 4), (6, 4, 4, 4), 1),
        (Activated(2, 4), (6, 4, 3, 3), 1),
        (ChannelsFirst(4), (6, 4, 3, 3), 1),
    ],
)
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_other_norms_have_an_affine_for_each_client(norm, shape, axis, clients):
    """Wherever the channels lie, each client's output is that of the norm with its own affine."""
    generator = torch.Generator().manual_seed(0)
    assert affine_axis(norm, shape) == axis
    ours = ClientNorm(norm, axis)
    own = {
        name: torch.randn(clients, *parameter.shape, generator=generator)
        for name, parameter in norm.named_parameters()
    }
    x = torch.randn(shape, generator=generator)
    y = torch.func.functional_call(ours, own, (x,))
    for client, images in enumerate(x.chunk(clients)):
        alone = torch.func.functional_call(norm, {n: t[client] for n, t in own.items()}, (images,))
        torch.testing.assert_close(y.chunk(clients)[client], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "shape"), [(Shifted(4), (2, 3, 4)), (nn.LayerNorm((3, 4)), (2, 3, 4)), (nn.LayerNorm(4), (2, 5))]
)
def test_an_affine_that_is_no_factor_for_each_channel_is_not_taken_for_one(norm, shape):
    """A weight that is changed first, one over two axes, and one that does not fit."""
    assert affine_axis(norm, shape) is None


def moved(norm, x, *, pooled):
    """The running tensors of a client after a training pass over `x` that takes its moments whole."""
    norm.momentum = 1.0
    pass_ = Pass()
    pass_.training = True
    ours = ClientBatchNorm(norm, moving=True, pass_=pass_, pooled=pooled)
    ours(x)
    return ours, {name: buffer[0] for name, buffer in ours.named_buffers() if name.startswith("running_")}


def test_pooling_by_hand():
    """Clients with the values 0, 2 and 4 have the mean 2 and the variance (4 + 0 + 4) / 3, not (1 * 2 + 0 * 1) / 3."""
    values = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0]])]
    found = {}
    for pooled in (False, True):
        norms = [moved(nn.BatchNorm1d(1), x, pooled=pooled) for x in values]
        whole = weighted_mean((len(x), params) for x, (_, params) in zip(values, norms, strict=True))
        square = whole["running_square" if pooled else "running_var"]
        found[pooled] = (
            float(whole["running_mean"]),
            float(norms[0][0].variance(whole["running_mean"], square)),
        )
    assert found[True] == (2.0, pytest.approx(8 / 3))
    assert found[False] == (2.0, pytest.approx(4 / 3))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), far=st.floats(-50, 50))
def test_pooled_moments_are_those_of_all_samples_together(sizes, far):
    """The mean of the clients' tensors, by samples, gives mean and variance of the whole, far from the start too."""
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [far + (k + 1) * torch.randn(n, 3, 2, 2, generator=generator) for k, n in enumerate(sizes)]
    norms = [moved(make_norm(), x, pooled=True) for x in parts]
    whole = weighted_mean((len(x), params) for x, (_, params) in zip(parts, norms, strict=True))
    every = torch.cat(parts).double()
    torch.testing.assert_close(whole["running_mean"].double(), every.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    variance = norms[0][0].variance(whole["running_mean"], whole["running_square"]).double()
    torch.testing.assert_close(
        variance, every.var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-6 * (1 + far * far)
    )


def test_a_pooled_variance_is_never_negative():
    """Rounding, or a server that steps too far, leaves zero."""
    norm = ClientBatchNorm(make_norm(), moving=True, pass_=Pass(), pooled=True)
    assert float(norm.variance(norm.origin + 2.0, torch.full((3,), 1.0)).min()) == 0.0


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("trained", [("weight", "bias"), ("weight",), ("bias",), ()])
def test_large_maps_of_halves_have_the_gradients_of_single_precision(monkeypatch, clients, trained):
    """Client by client or all at once, with either half of the affine at rest, it is what torch differentiates in fp32."""
    monkeypatch.setattr(norms, "ALONE_FROM", 1)
    generator = torch.Generator().manual_seed(0)
    layer = ClientBatchNorm(make_norm(), moving=False, pass_=Pass())
    for name in trained:
        own = getattr(layer, name).expand(clients, -1) + torch.randn(clients, 3, generator=generator)
        setattr(layer, name, nn.Parameter(own))
    x = torch.randn(2 * clients, 3, 8, 8, generator=generator).bfloat16()
    upstream = torch.randn(x.shape, generator=generator).bfloat16()
    leaves = [x.requires_grad_(), *(getattr(layer, name) for name in trained)]
    found = torch.autograd.grad(layer(x), leaves, upstream)
    scale = layer.weight * torch.rsqrt(layer.running_var + layer.eps)
    wide = [torch.broadcast_to(t, (clients, 3)).repeat_interleave(2, 0)[:, :, None, None]
            for t in (scale, layer.bias - layer.running_mean * scale)]  # fmt: skip
    expected = torch.autograd.grad(x.float() * wide[0] + wide[1], leaves, upstream.float())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-2, atol=2e-2)

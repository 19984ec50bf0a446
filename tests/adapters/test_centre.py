"""A matrix under the centre of a frozen kernel: folded or added, it is the same map with the same gradients."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import random_images, tiny_backbone
from torch import nn

from fedadapt.adapters import attach, centre
from fedadapt.params import expand
from fedadapt.registry import create


def conv(stride, *, bias=False):
    """A 3x3 convolution with random weights, and a matrix for each of three clients."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.utils.skip_init(nn.Conv2d, 3, 5, 3, stride=stride, padding=1, bias=bias)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    layer.requires_grad_(requires_grad=False)
    return layer, torch.randn(3, 5, 3, generator=generator), torch.randn(6, 3, 9, 8, generator=generator)


def run(layer, matrix, x, upstream=None):
    """Output, and the gradients by input and by matrix."""
    x, matrix = x.clone().requires_grad_(), matrix.clone().requires_grad_()
    y = centre.client_conv(layer, x, matrix)
    upstream = torch.cos(torch.arange(float(y.numel()))).view(y.shape) if upstream is None else upstream
    return y.detach(), *torch.autograd.grad(y, (x, matrix), upstream)


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_convolution_plus_each_clients_1x1(monkeypatch, folds, stride, bias):
    """Output and gradients are those of two convolutions that torch differentiates, either way it is computed."""
    layer, matrix, x = conv(stride, bias=bias)
    monkeypatch.setattr(centre, "is_worth_folding", lambda *_: folds)
    found = run(layer, matrix, x)
    own_x, own_matrix = x.clone().requires_grad_(), matrix.clone().requires_grad_()
    y = torch.cat([
        layer(part) + nn.functional.conv2d(part, one[:, :, None, None], stride=stride)
        for part, one in zip(own_x.chunk(3), own_matrix, strict=True)
    ])  # fmt: skip
    upstream = torch.cos(torch.arange(float(y.numel()))).view(y.shape)
    expected = (y.detach(), *torch.autograd.grad(y, (own_x, own_matrix), upstream))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_pixel_by_hand():
    """Kernel 1 in every tap, matrix 2: on a 3x3 map of ones the centre gives 9 + 2; each input gradient is by hand.

    With an upstream gradient of 1 at the centre alone, every input pixel gets the kernel's 1, the centre 1 + 2,
    and the matrix gets the centre pixel, 1.
    """
    layer = nn.utils.skip_init(nn.Conv2d, 1, 1, 3, padding=1, bias=False)
    layer.weight = nn.Parameter(torch.ones(1, 1, 3, 3), requires_grad=False)
    upstream = torch.zeros(1, 1, 3, 3)
    upstream[0, 0, 1, 1] = 1
    y, by_x, by_matrix = run(layer, torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 3, 3), upstream)
    assert float(y[0, 0, 1, 1]) == 11
    assert by_x[0, 0].tolist() == [[1, 1, 1], [1, 3, 1], [1, 1, 1]]
    assert by_matrix.tolist() == [[[1.0]]]


def test_folding_follows_from_shapes():
    """Many pixels and channels of one client are worth a kernel of its own; a few are not."""
    layer = nn.Conv2d(64, 64, 3, padding=1)
    large, small = torch.zeros(32, 64, 8, 8), torch.zeros(32, 64, 2, 2)
    assert centre.is_worth_folding(layer, large, clients=1)
    assert not centre.is_worth_folding(layer, large, clients=32)
    assert not centre.is_worth_folding(layer, small, clients=1)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_that_is_made_at_each_call_is_not_taken_as_it_lies(norm):
    """A convolution with a hook is called, so that the start is still the backbone."""
    backbone = tiny_backbone()
    with torch.enable_grad():
        norm(backbone.module.layer1[0].conv1)
    backbone.module.requires_grad_(requires_grad=False)
    images = random_images(2)
    with torch.no_grad():
        backbone.module(random_images(1, seed=1))
        adapter, policy = create("adapter", "parallel"), create("norm policy", "frozen")
        model = attach(backbone, adapter, policy, torch.Generator().manual_seed(0))
        expected = backbone.module(images)
        torch.testing.assert_close(model(expand(model.start, 1), images), expected, rtol=1e-5, atol=1e-5)
    site = model.module.get_submodule("layer1.0.conv1")
    assert not site.joins
    assert model.module.get_submodule("layer1.0.conv2").joins

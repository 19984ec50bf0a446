"""Sites are found by what a convolution does, and an adapter beside one has the shape of its output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedadapt.adapters.hosts import BesidePixels
from fedadapt.adapters.parallel import Matrix
from fedadapt.adapters.placement import choose
from fedadapt.adapters.probe import Seen
from fedadapt.adapters.sites import find_sites, shared_modules, tied_parameters
from fedadapt.registry import create

AXES = st.tuples(st.integers(1, 7), st.integers(1, 7))


def conv(**options):
    """A convolution, made without touching torch's global generator."""
    return nn.utils.skip_init(nn.Conv2d, **options)


@given(
    kernel=st.one_of(st.integers(1, 7).map(lambda k: (k, k)), AXES),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.sampled_from(["same", "valid"])),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 6]),
)
def test_a_kernel_with_a_centre_takes_a_pointwise_beside_it(kernel, stride, padding, dilation, groups):
    """Wherever `has_centre` says so, the branch equals the kernel that holds only its centre tap."""
    assume(padding != "same" or stride == (1, 1))
    layer = conv(
        in_channels=6, out_channels=12, kernel_size=kernel, stride=stride, padding=padding,
        dilation=dilation, groups=groups, bias=False,
    )  # fmt: skip
    (site,) = find_sites(nn.Sequential(layer))
    assert site.describe()["kernel_size"] == list(kernel)
    if padding == "same":
        centred = all(k % 2 == 1 for k in kernel)
    else:
        numbers = (0, 0) if padding == "valid" else padding
        centred = all(
            k % 2 == 1 and 2 * p == d * (k - 1) for k, p, d in zip(kernel, numbers, dilation, strict=True)
        )
    assert site.has_centre == centred
    if not centred:
        return
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, :, kernel[0] // 2, kernel[1] // 2].normal_(generator=generator)
    branch = Matrix(6, 12, groups)
    branch.weight.data[0] = layer.weight.data[:, :, kernel[0] // 2, kernel[1] // 2]
    x = torch.randn(2, 6, 9, 8, generator=generator)
    expected = layer(x).detach()
    doubled = BesidePixels(layer, branch, stride, 1.0)(x).detach()
    torch.testing.assert_close(doubled, 2 * expected, rtol=1e-4, atol=1e-5)


@given(
    kernel=st.integers(1, 7),
    padding=st.integers(0, 6),
    dilation=st.integers(1, 2),
    wanted=st.sets(st.sampled_from([1, 3, 5, 7]), min_size=1),
)
def test_the_parallel_adapter_picks_by_kernel_size(kernel, padding, dilation, wanted):
    """It fits square kernels of the sizes asked for whose padding keeps the map."""
    layer = conv(in_channels=2, out_channels=2, kernel_size=kernel, padding=padding, dilation=dilation)
    (site,) = find_sites(nn.Sequential(layer))
    branches = create("adapter", "parallel", {"sites": {"kernel_sizes": tuple(sorted(wanted))}}).branches
    seen = {"0": Seen(by_image=True, shape=(2, 2, 8, 8), size=64)}
    chosen = choose(
        branches.placement,
        [site],
        seen,
        kinds=branches.kinds,
        kernel_sizes=branches.kernel_sizes,
        fits=branches.fits,
    )
    assert bool(chosen) == (kernel in wanted and 2 * padding == dilation * (kernel - 1))


@given(
    clients=st.integers(1, 5),
    samples=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels_last=st.booleans(),
)
def test_pointwise_is_a_1x1_convolution_for_each_client(clients, samples, groups, stride, channels_last):
    """Outputs and gradients equal torch's convolution of each client's images with its own kernel."""
    generator = torch.Generator().manual_seed(clients)
    zero = conv(in_channels=4, out_channels=8, kernel_size=1, stride=stride, groups=groups, bias=False)
    with torch.no_grad():
        zero.weight.zero_()
    branch = BesidePixels(zero.requires_grad_(requires_grad=False), Matrix(4, 8, groups), stride, 1.0)
    kernel = torch.randn(clients, 8, 4 // groups, generator=generator, requires_grad=True)
    x = torch.randn(clients * samples, 4, 7, 6, generator=generator)
    given_x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    y = torch.func.functional_call(branch, {"adapter.weight": kernel}, (given_x,))
    reference = torch.cat(
        [
            functional.conv2d(own, kernel[k, :, :, None, None], stride=stride, groups=groups)
            for k, own in enumerate(x.split(samples))
        ]
    )
    torch.testing.assert_close(y, reference, rtol=1e-4, atol=1e-5)
    (ours,) = torch.autograd.grad(y.square().sum(), kernel)
    (theirs,) = torch.autograd.grad(reference.square().sum(), kernel)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


class Standardised(nn.Conv2d):
    """A convolution that centres its weight first."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True) + 1, self.bias)


class SamePadded(nn.Conv2d):
    """A convolution that pads by the size of the map, as other frameworks do."""

    def forward(self, x):
        over = [
            max((-(-size // s) - 1) * s + k - size, 0)
            for size, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        ]
        top, left = over[0] // 2, over[1] // 2
        return super().forward(functional.pad(x, (left, over[1] - left, top, over[0] - top)))


class Renamed(nn.Conv2d):
    """A subclass that changes nothing."""


class Unusable(nn.Conv2d):
    """A convolution that cannot be called with a map alone."""

    def forward(self, x, y):
        return super().forward(x + y)


@pytest.mark.parametrize(
    ("kind", "options", "has_centre", "applies_weight"),
    [
        (nn.Conv2d, {"padding": 1}, True, True),
        (nn.Conv2d, {}, False, True),
        (Renamed, {"padding": 1, "stride": 2}, True, True),
        (Standardised, {"padding": 1}, True, False),
        (SamePadded, {}, True, True),
        (SamePadded, {"stride": 2}, False, True),
        (Unusable, {"padding": 1}, False, False),
    ],
)
def test_subclasses_are_known_by_what_they_do(kind, options, has_centre, applies_weight):
    """Padding by the size of the map keeps the centre at stride 1 only; a changed weight is noticed."""
    layer = nn.utils.skip_init(kind, 2, 4, 3, **options)
    (site,) = find_sites(nn.Sequential(layer))
    assert (site.has_centre, site.applies_weight) == (has_centre, applies_weight)


def test_a_weight_made_anew_before_each_call_is_noticed():
    """A layer with a hook before its call, as the old weight norm has, does not apply its weight as it is."""
    hooked, parametrised = nn.utils.skip_init(nn.Linear, 3, 2), nn.utils.skip_init(nn.Linear, 3, 2)
    hooked.register_forward_pre_hook(lambda layer, given: None)
    torch.nn.utils.parametrizations.weight_norm(parametrised)
    (site,) = find_sites(nn.Sequential(hooked, parametrised))
    assert (site.name, site.applies_weight) == ("0", False)


def test_shared_and_tied_modules_are_found():
    """One module under two names, and two modules with one weight."""
    once, twice = nn.utils.skip_init(nn.Linear, 2, 2), nn.utils.skip_init(nn.Linear, 2, 2)
    tied = nn.utils.skip_init(nn.Linear, 2, 2)
    tied.weight = once.weight
    module = nn.ModuleDict({"a": once, "b": twice, "c": twice, "d": tied})
    assert shared_modules(module) == {"b": ["b", "c"]}
    assert {"a.weight", "d.weight"} <= tied_parameters(module)
    assert "a.bias" not in tied_parameters(module)

"""Sites are found by what a convolution does, and an adapter beside one has the shape of its output."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedadapt.adapters.parallel import Pointwise
from fedadapt.adapters.sites import find_sites
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
    branch = Pointwise(6, 12, stride, groups)
    branch.weight.data[0] = layer.weight.data[:, :, kernel[0] // 2, kernel[1] // 2]
    x = torch.randn(2, 6, 9, 8, generator=generator)
    torch.testing.assert_close(branch(x), layer(x).detach(), rtol=1e-4, atol=1e-5)


@given(
    kernel=st.integers(1, 7),
    padding=st.integers(0, 6),
    dilation=st.integers(1, 2),
    wanted=st.sets(st.sampled_from([3, 5, 7]), min_size=1),
)
def test_the_parallel_adapter_picks_by_kernel_size(kernel, padding, dilation, wanted):
    """It fits square kernels of the sizes asked for whose padding keeps the map."""
    layer = conv(in_channels=2, out_channels=2, kernel_size=kernel, padding=padding, dilation=dilation)
    (site,) = find_sites(nn.Sequential(layer))
    adapter = create("adapter", "parallel", {"kernel_sizes": tuple(sorted(wanted))})
    assert adapter.fits(site) == (kernel in wanted and 2 * padding == dilation * (kernel - 1))


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
    branch = Pointwise(4, 8, stride, groups)
    kernel = torch.randn(clients, 8, 4 // groups, generator=generator, requires_grad=True)
    x = torch.randn(clients * samples, 4, 7, 6, generator=generator)
    given_x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    y = torch.func.functional_call(branch, {"weight": kernel}, (given_x,))
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


def test_convolutions_that_compute_something_else_are_no_sites():
    """A subclass may standardise its weight or pad by itself, so its kernel says nothing."""

    class Standardised(nn.Conv2d):
        """Any subclass."""

    plain = conv(in_channels=2, out_channels=2, kernel_size=3)
    other = nn.utils.skip_init(Standardised, 2, 2, 3)
    assert [site.name for site in find_sites(nn.Sequential(plain, other))] == ["0"]

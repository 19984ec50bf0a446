"""What is kept are the largest values of each block, as their mean with the sign."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedadapt.codecs import Key, make_codec
from fedadapt.errors import FrameError
from fedadapt.seeds import Seeds

KEY = Key(Seeds(0), "test")


def back(values, codec):
    """What arrives of a vector."""
    params = {"w": torch.as_tensor(values)}
    made = make_codec(codec)
    return made.decode(made.encode(params, KEY), {"w": params["w"].shape}, KEY)["w"]


def lost(values, codec):
    """The share of the squared norm that does not arrive."""
    return float((values - back(values, codec)).square().sum() / values.square().sum())


def test_by_hand():
    """Of each eight values two are kept, of the two that are left over one."""
    first, second = [1.0, -5.0, 0.5, 3.0, 0.0, -1.0, 2.0, -0.5], [0.0] * 6 + [2.0, 16.0]
    found = back([*first, *second, 0.25, -0.5], "sparse_ternary(keep=0.25, gain=1, block=8)")
    assert found.tolist() == [0, -4.0, 0, 4.0, *[0.0] * 10, 9.0, 9.0, 0, -0.5]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.floats(1, 1.9))
def test_a_gain_loses_no_more_than_there_was(values, gain):
    """Rounding the mean up included."""
    values = torch.tensor(values)
    left = values.double() - back(values, f"sparse_ternary(keep=0.2, gain={gain}, block=8)")
    assert float(left.norm()) <= float(values.double().norm()) * (1 + 1e-6) + 1e-25


def test_signs_and_places_are_checked():
    """A run that leads out of its block is refused, wherever it comes from."""
    codec, layout = make_codec("sparse_ternary(keep=0.25, block=8)"), {"w": torch.Size([8])}
    data = bytearray(codec.encode({"w": torch.arange(8.0)}, KEY))
    assert data[2:4] == bytes([6, 0])
    data[3] = 1
    with pytest.raises(FrameError, match="behind the end of its block of 8"):
        codec.decode(bytes(data), layout, KEY)


def test_layers_that_change_little_keep_as_much():
    """A block that is a thousand times smaller loses the same share."""
    block = torch.randn(256, generator=torch.Generator().manual_seed(0))
    found = back(torch.cat([block, block / 1024]), "sparse_ternary(keep=0.1)")
    assert torch.equal(found[256:], found[:256] / 1024)
    assert int((found != 0).sum()) == 2 * 26


@pytest.mark.parametrize(
    ("keep", "share", "bits"), [(0.1, 0.57, 0.57), (0.15, 0.47, 0.76), (0.2, 0.39, 0.92)]
)
def test_what_is_lost_of_even_values_is_what_the_docs_say(keep, share, bits):
    """Of normal values."""
    values = torch.randn(2**17, generator=torch.Generator().manual_seed(0))
    assert lost(values, f"sparse_ternary(keep={keep}, gain=1)") == pytest.approx(share, abs=0.01)
    packed = make_codec(f"sparse_ternary(keep={keep}) > zstd").encode({"w": values}, KEY)
    assert len(packed) * 8 / len(values) == pytest.approx(bits + 0.05, abs=0.02)

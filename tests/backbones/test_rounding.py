"""A frozen network in fewer bytes: what is lost, what is counted, and that nobody rounds to something else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedadapt.backbones.backbone import content
from fedadapt.backbones.rounding import EXPONENTS, Rounding, round_backbone, unpack
from fedadapt.backbones.weights import load_weights, save_weights
from fedadapt.errors import BackboneError
from fedadapt.registry import create


def narrow(seed=0, **options):
    """A small network with random weights."""
    return create("backbone", "resnet20", {"width": 0.25, **options})(10, torch.Generator().manual_seed(seed))


def tensors(backbone):
    """Its content."""
    return dict(content(backbone.module, backbone.head))


@given(
    st.sampled_from(Rounding),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 99),
    st.sampled_from([1e-30, 1e-3, 1.0, 127.0, 1e4]),
)
def test_rounding_twice_is_rounding_once(rounding, shape, seed, size):
    """Within half a step of each value, in the bytes that are promised, and the same bits the second time."""
    tensor = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    packed = rounding.pack("w", tensor)
    assert sum(t.nbytes for t in packed.values()) == rounding.num_bytes(tensor.shape)
    once = unpack(packed)["w"].float()
    assert torch.equal(unpack(rounding.pack("w", once))["w"].float(), once)
    if rounding is Rounding.FLOAT32 or tensor.ndim < 2:
        assert torch.equal(once, tensor)
    else:
        # A power of two may be twice what the largest value of a channel needs; a 16-bit float has 11 bits.
        largest = tensor.abs().flatten(1).amax(1).view(-1, *[1] * (tensor.ndim - 1))
        step = largest / 127 if rounding is Rounding.INT8 else tensor.abs() * 2.0**-11 + 2.0**-25
        assert bool(((once - tensor).abs() <= step * 1.0001).all())


@pytest.mark.parametrize("rounding", Rounding)
def test_a_rounded_network_says_what_it_is(rounding):
    """Its digest is that of the rounded values, its bytes those of the file, and its head is left alone."""
    plain, backbone = narrow(), round_backbone(narrow(), rounding)
    assert backbone.num_bytes == sum(
        rounding.num_bytes(tensor.shape) for tensor in tensors(backbone).values()
    )
    assert (backbone.digest == plain.digest) is (rounding is Rounding.FLOAT32)
    assert torch.equal(backbone.module.fc.weight, plain.module.fc.weight)
    assert round_backbone(backbone, rounding).digest == backbone.digest
    share = {Rounding.FLOAT32: 1.0, Rounding.FLOAT16: 0.55, Rounding.INT8: 0.36}[rounding]
    assert backbone.num_bytes <= share * plain.num_bytes


@pytest.mark.parametrize("rounding", Rounding)
def test_who_fetches_the_file_holds_the_same_bits(tmp_path, rounding):
    """Whether the fetched network is rounded again or not."""
    backbone, file = round_backbone(narrow(), rounding), tmp_path / "sent.safetensors"
    save_weights(backbone.module, file, {}, rounding.pack)
    fetched = narrow(1, weights=str(file))
    assert fetched.digest == backbone.digest
    assert round_backbone(fetched, rounding).digest == backbone.digest


@pytest.mark.parametrize(
    ("rounding", "value"),
    [
        (Rounding.FLOAT16, 1e6),
        (Rounding.FLOAT16, math.nan),
        (Rounding.INT8, math.nan),
        (Rounding.INT8, math.inf),
    ],
)
def test_what_cannot_be_rounded_is_refused(rounding, value):
    """One line that says where, and what to do."""
    backbone = narrow()
    with torch.no_grad():
        backbone.module.conv1.weight[0, 0, 0, 0] = value
    with pytest.raises(BackboneError, match=r"conv1\.weight holds values that are too large or not finite"):
        round_backbone(backbone, rounding)


@pytest.mark.parametrize(
    "exponents", [torch.zeros(3, dtype=torch.int8), torch.zeros(4), torch.zeros((), dtype=torch.int8)]
)
def test_exponents_that_do_not_fit_are_refused(tmp_path, exponents):
    """Of another length, type or shape."""
    file = tmp_path / "sent.safetensors"
    save_weights(narrow().module, file, {}, Rounding.INT8.pack)
    stored = load_file(file) | {f"conv1.weight{EXPONENTS}": exponents}
    save_file(stored, file)
    with pytest.raises(BackboneError, match=r"'conv1\.weight' and their exponents do not fit"):
        load_weights(narrow().module, file, "fc")
    del stored[f"conv1.weight{EXPONENTS}"]
    save_file(stored, file)
    with pytest.raises(BackboneError, match=r"integers of 'conv1\.weight' without exponents"):
        load_weights(narrow().module, file, "fc")

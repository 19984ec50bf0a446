"""What holds for every codec; a new one is a row of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedadapt.errors import FrameError
from fedadapt.registry import create, names


@dataclass(frozen=True)
class Case:
    """One codec, and what it promises.

    Args:
        name: as registered.
        tolerance: largest error of a value, as a share of the largest value of its tensor; 0 is bit for bit.
        bytes_of_100: bytes of one tensor of 100 values, derived by hand.
        options: of the codec.
    """

    name: str
    tolerance: float
    bytes_of_100: int
    options: dict[str, Any] = field(default_factory=dict)


TABLE = [Case("float32", tolerance=0.0, bytes_of_100=400)]
CASES = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def tensors(draw):
    """Named fp32 tensors of any shape, scalars and empty ones included."""
    made = {}
    for index, shape in enumerate(draw(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4))):
        count = torch.Size(shape).numel()
        made[f"t{index}"] = torch.tensor(draw(st.lists(FLOATS, min_size=count, max_size=count))).view(shape)
    return made


def layout_of(params):
    """Names and shapes."""
    return {name: tensor.shape for name, tensor in params.items()}


def test_the_table_is_complete():
    """Every registered codec is under contract."""
    assert {case.name for case in TABLE} == set(names("codec"))


@CASES
@given(params=tensors())
def test_a_round_trip_keeps_names_shapes_and_values(case, params):
    """What comes back is fp32, within the promised error, in exactly as many bytes as announced."""
    codec = create("codec", case.name, case.options)
    data = codec.encode(params)
    if codec.num_bytes(layout_of(params)) is not None:
        assert len(data) == codec.num_bytes(layout_of(params))
    back = codec.decode(data, layout_of(params))
    assert list(back) == list(params)
    for name, tensor in params.items():
        assert back[name].dtype == torch.float32
        assert back[name].shape == tensor.shape
        if case.tolerance == 0.0:
            assert back[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
        elif tensor.numel():
            assert (back[name] - tensor).abs().max() <= case.tolerance * tensor.abs().max()


@CASES
def test_the_size_derived_by_hand(case):
    """100 values take the bytes that the codec's definition says."""
    codec = create("codec", case.name, case.options)
    assert len(codec.encode({"w": torch.linspace(-1, 1, 100)})) == case.bytes_of_100


@CASES
def test_memory_layout_does_not_change_the_bytes(case):
    """A transposed view packs as its values read."""
    codec = create("codec", case.name, case.options)
    view = torch.arange(12.0).view(3, 4).t()
    assert codec.encode({"w": view}) == codec.encode({"w": view.contiguous()})


@CASES
@given(data=st.data())
def test_bytes_that_do_not_fit_are_refused(case, data):
    """Truncated, lengthened and random sections of the wrong size raise FrameError and nothing else."""
    codec = create("codec", case.name, case.options)
    params = {"a": torch.ones(3, 2), "b": torch.tensor(1.0)}
    whole = codec.encode(params)
    wrong = data.draw(
        st.one_of(
            st.integers(0, len(whole) - 1).map(lambda cut: whole[:cut]),
            st.binary(min_size=1, max_size=9).map(lambda more: whole + more),
            st.binary(max_size=60).filter(lambda noise: len(noise) != len(whole)),
        )
    )
    with pytest.raises(FrameError, match="bytes"):
        codec.decode(wrong, layout_of(params))


@CASES
def test_decoded_tensors_are_memory_of_their_own(case):
    """They can be changed in place, and the bytes stay."""
    codec = create("codec", case.name, case.options)
    data = codec.encode({"a": torch.ones(4)})
    kept = bytes(data)
    codec.decode(data, {"a": torch.Size([4])})["a"].add_(1)
    assert data == kept


def test_codecs_have_different_digests():
    """Two parties with different codecs notice."""
    digests = [create("codec", case.name, case.options).digest for case in TABLE]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 8 for digest in digests)

"""Arithmetic over named tensors, with and without client axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedadapt.errors import RunError
from fedadapt.params import (
    add,
    as_vector,
    expand,
    from_bytes,
    from_vector,
    is_finite,
    norm,
    num_bytes,
    num_values,
    pick,
    scale,
    shapes,
    stack,
    to_bytes,
    weighted_mean,
    zeros_like,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)
NAMES = st.text(st.characters(codec="ascii", exclude_characters="\n\0"), min_size=1, max_size=12)


@st.composite
def streams(draw):
    """Streams of any names, shapes (scalars and empty tensors too) and types."""
    made = {}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    for stream in draw(st.lists(st.sampled_from(["model", "c", "momentum"]), unique=True)):
        made[stream] = {
            name: (100 * torch.randn(draw(st.lists(st.integers(0, 3), max_size=3)), generator=generator)).to(
                draw(st.sampled_from(DTYPES))
            )
            for name in draw(st.lists(NAMES, unique=True, max_size=4))
        }
    return made


@given(value=streams())
def test_streams_survive_bytes(value):
    """Names, order, types, shapes and every bit come back."""
    back = from_bytes(to_bytes(value))
    assert list(back) == list(value)
    for stream, params in value.items():
        assert list(back[stream]) == list(params)
        for name, tensor in params.items():
            assert back[stream][name].dtype == tensor.dtype
            assert back[stream][name].shape == tensor.shape
            assert torch.equal(back[stream][name], tensor)


@given(cut=st.integers(0, 200), noise=st.binary(max_size=64))
def test_damaged_bytes_are_refused(cut, noise):
    """A document that is cut off, or is none at all, raises RunError and nothing else."""
    whole = to_bytes({"model": {"w": torch.ones(40)}})
    for damaged in (whole[: min(cut, len(whole) - 1)], noise):
        with pytest.raises(RunError, match="damaged"):
            from_bytes(damaged)


@given(weights=st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any), seed=st.integers(0, 99))
def test_a_weighted_mean_is_the_sum_over_the_weights(weights, seed):
    """It equals the mean written out in float64, and scaling all weights changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    items = [{"w": torch.randn(5, generator=generator)} for _ in weights]
    mean = weighted_mean(zip(map(float, weights), items, strict=True))["w"]
    expected = sum(w * item["w"].double() for w, item in zip(weights, items, strict=True)) / sum(weights)
    torch.testing.assert_close(mean, expected.float())
    doubled = weighted_mean([(2.0 * w, item) for w, item in zip(weights, items, strict=True)])["w"]
    torch.testing.assert_close(mean, doubled, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("items", [[], [(0.0, {"w": torch.ones(1)})]])
def test_a_mean_needs_a_positive_weight(items):
    """Without any weight there is no mean."""
    with pytest.raises(ValueError, match="positive weight"):
        weighted_mean(items)


def test_a_mean_leaves_its_inputs_alone():
    """Summing in place never reaches the tensors that were given."""
    first = {"w": torch.ones(2, dtype=torch.float64)}
    weighted_mean([(1.0, first), (1.0, {"w": torch.zeros(2, dtype=torch.float64)})])
    assert first["w"].tolist() == [1.0, 1.0]


def test_sums_and_sizes():
    """The small functions give the numbers that can be worked out by hand."""
    params = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert norm(params) == 5.0
    assert (num_values(params), num_bytes(params)) == (3, 12)
    assert add(params, params, alpha=-1.0)["a"].tolist() == [0.0, 0.0]
    assert scale(params, 0.5)["b"].tolist() == [[2.0]]
    assert norm(zeros_like(params)) == 0.0
    assert is_finite(params)
    assert not is_finite({**params, "c": torch.tensor(float("nan"))})
    assert not is_finite({**params, "c": torch.tensor(float("-inf"))})


@given(streams())
def test_a_vector_has_all_values_in_order(value):
    """Whatever the shapes and types, empty tensors among them; tensors laid out in one vector give that back unread."""
    for params in value.values():
        vector = as_vector(params)
        expected = [number for tensor in params.values() for number in tensor.reshape(-1).double().tolist()]
        assert vector.double().tolist() == expected
        laid = from_vector(vector, shapes(params))
        assert shapes(laid) == shapes(params)
        if all(tensor.numel() for tensor in params.values()):
            assert as_vector(laid).data_ptr() == vector.data_ptr()
        assert as_vector(laid).tolist() == vector.tolist()


def test_only_tensors_that_lie_one_after_the_other_are_taken_for_a_vector():
    """Not those in another order, with gaps, transposed, or of another type."""
    whole = torch.arange(12.0)
    a, b, c = whole[:4].view(2, 2), whole[4:8].view(2, 2), whole[8:]
    assert as_vector({"a": a, "b": b, "c": c}).data_ptr() == whole.data_ptr()
    assert as_vector({"b": b, "c": c}).tolist() == whole[4:].tolist()
    assert as_vector({"b": b, "a": a}).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert as_vector({"a": a, "c": c}).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert as_vector({"a": a, "b": b.T}).tolist() == [0, 1, 2, 3, 4, 6, 5, 7]
    assert as_vector({"a": a, "b": b.view(torch.int32)}).tolist()[:4] == [0, 1, 2, 3]


def test_the_client_axis_goes_on_and_off():
    """`pick` undoes `stack`, and `expand` gives each client memory of its own."""
    clients = [{"w": torch.full((2,), float(k))} for k in range(3)]
    stacked = stack(clients)
    assert stacked["w"].shape == (3, 2)
    assert all(torch.equal(pick(stacked, k)["w"], clients[k]["w"]) for k in range(3))
    wide = expand(clients[1], 2)
    wide["w"][0] = 9.0
    assert wide["w"].tolist() == [[9.0, 9.0], [1.0, 1.0]]
    assert clients[1]["w"].tolist() == [1.0, 1.0]

"""Every purpose, round and client has a generator of its own, and nothing else decides what it draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedadapt.errors import ConfigError
from fedadapt.seeds import Seeds

NAMES = st.tuples(
    st.sampled_from(["batches", "cohort", "head"]), st.integers(0, 10**6), st.integers(-1, 10**6)
)


@given(one=NAMES, other=NAMES)
def test_derived_seeds_differ_exactly_where_the_names_differ(one, other):
    """Equal purpose, round and client give an equal seed, anything else gives another one."""
    seeds = Seeds(7)
    same = seeds.derive(one[0], round=one[1], client=one[2]) == seeds.derive(
        other[0], round=other[1], client=other[2]
    )
    assert same == (one == other)


@given(root=st.integers(0, 2**63 - 1))
def test_a_seed_has_63_bits(root):
    """A derived seed fits every generator, whatever the root."""
    assert 0 <= Seeds(root).derive("x") < 2**63


@pytest.mark.parametrize("root", [-1, 2**63])
def test_a_root_out_of_range_is_refused(root):
    """The message names the value."""
    with pytest.raises(ConfigError, match=str(root)):
        Seeds(root)


def test_generators_do_not_depend_on_what_was_drawn_before():
    """A generator made after others were used draws what it would have drawn first."""
    first = torch.rand(3, generator=Seeds(1).torch("a", round=2))
    seeds = Seeds(1)
    torch.rand(9, generator=seeds.torch("b"))
    seeds.numpy("a", round=2).random(9)
    assert torch.equal(first, torch.rand(3, generator=seeds.torch("a", round=2)))


def test_no_global_random_state_is_touched():
    """Making and using generators leaves torch's own as it was."""
    before = torch.random.get_rng_state()
    torch.rand(3, generator=Seeds(1).torch("a"))
    Seeds(1).numpy("a").random()
    assert torch.equal(before, torch.random.get_rng_state())

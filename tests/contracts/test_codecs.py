"""What holds for every codec; a new one is a row of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.codecs import Key, make_codec
from fedadapt.errors import ConfigError, FrameError
from fedadapt.registry import names
from fedadapt.seeds import Seeds


@dataclass(frozen=True)
class Case:
    """One codec or chain of them, and what it promises besides its law.

    Args:
        name: as users write it.
        bytes_of_100: bytes of one tensor of 100 values, derived by hand; None if they depend on the values.
        exact: whether every value comes back bit for bit.
        unbiased: whether the mean over many seeds is what went in.
        huge: whether values of 3e38 are carried rather than refused.
    """

    name: str
    bytes_of_100: int | None
    exact: bool = False
    unbiased: bool = False
    huge: bool = True


TABLE = [
    Case("float32", 400, exact=True, unbiased=True),
    Case("float16", 200, huge=False),
    Case("bfloat16", 200),
    # A scale of 2 bytes for 256, 128, 64 and 64 values; codes of 8, 4, 2 and 1 bits.
    Case("int8", 2 + 100, unbiased=True),
    Case("int4", 2 + 50, unbiased=True),
    Case("int2", 2 * 2 + 25, unbiased=True),
    Case("int1", 2 * 2 + 13, unbiased=True),
    Case("int8(rounding=nearest)", 2 + 100),
    Case("int4(block=8, rounding=nearest)", 13 * 2 + 50),
    Case("int2(rounding=nearest)", 2 * 2 + 25),
    Case("int1(rounding=nearest)", 2 * 2 + 13),
    # Five values in a byte.
    Case("ternary", 2 * 2 + 20, unbiased=True),
    Case("ternary(rounding=nearest)", 2 * 2 + 20),
    # Of 100 values 15 by a byte and a bit each; of twelve blocks of 8 one each, and one of the 4 that are left.
    Case("sparse_ternary", 2 + 15 + 2),
    Case("sparse_ternary(keep=0.05, block=8)", 13 * 2 + 13 + 2),
    Case("sparse_ternary(keep=0.05, block=8) > zstd", None),
    # Padded to one block of 1024, or to two of 64.
    Case("rotate", 4 * 1024, unbiased=True, huge=False),
    Case("rotate(block=64) > int4(block=64)", 2 * 2 + 64, unbiased=True, huge=False),
    # One place: 6 low bits, and 1 + (99 >> 6) = 2 bits of marks.
    Case("topk", 1 + 1 + 4),
    # Ten places: 3 low bits each, and 10 + (99 >> 3) = 22 bits of marks.
    Case("topk(fraction=0.1) > int8", 4 + 3 + 2 + 10),
    Case("randomk", 40, unbiased=True),
    Case("randomk(fraction=0.25, unbiased=false) > int4", 2 + 13),
    Case("mask", 40),
    Case("mask(period=3, unbiased=true)", 4 * 34, unbiased=True),
    # A vector has no factors.
    Case("lowrank", 400),
    Case("lowrank(rank=1) > int8", 2 + 100, huge=False),
    Case("lowrank(rank=1) > rotate > int2", 2 * 16 + 1024 // 4, huge=False),
    Case("zstd", None, exact=True, unbiased=True),
    Case("rotate > int4 > zstd", None, unbiased=True, huge=False),
    Case("topk(fraction=0.1) > ternary > zstd", None),
]
CASES = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LIKELY = st.floats(-1000, 1000, width=32)


@st.composite
def tensors(draw, floats=FLOATS):
    """Named fp32 tensors of any shape, scalars and empty ones included."""
    made = {}
    for index, shape in enumerate(draw(st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=4))):
        count = torch.Size(shape).numel()
        made[f"t{index}"] = torch.tensor(draw(st.lists(floats, min_size=count, max_size=count))).view(shape)
    return made


def layout_of(params):
    """Names and shapes."""
    return {name: tensor.shape for name, tensor in params.items()}


def key_of(seed=0, round=1, client=0):
    """The key of a message."""
    return Key(Seeds(seed), "test", round, client)


def joined(params):
    """All values in double precision, where no square overflows."""
    return torch.cat([torch.zeros(0), *(tensor.reshape(-1) for tensor in params.values())]).double()


def test_the_table_is_complete():
    """Every registered codec is under contract."""
    assert {link.split("(")[0].strip() for case in TABLE for link in case.name.split(">")} == set(
        names("codec")
    )


@CASES
@settings(max_examples=20)
@given(params=st.one_of(tensors(), tensors(LIKELY)), seed=st.integers(0, 2**40))
def test_a_round_trip_keeps_names_shapes_and_its_law(case, params, seed):
    """What comes back is fp32, as near as the law says, in as many bytes as announced; or it is refused in words."""
    codec, key = make_codec(case.name), key_of(seed)
    try:
        data = codec.encode(params, key)
    except FrameError as error:
        assert not case.huge or "lowrank" in case.name
        assert joined(params).abs().max() > 6e4
        assert "use codec bfloat16" in str(error)
        return
    if (announced := codec.num_bytes(layout_of(params))) is not None:
        assert len(data) == announced
    back = codec.decode(data, layout_of(params), key)
    assert list(back) == list(params)
    for name, tensor in params.items():
        assert (back[name].dtype, back[name].shape) == (torch.float32, tensor.shape)
        if case.exact:
            assert back[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    # Decoding may enlarge a value beyond the range of floats; whoever reads it refuses it then.
    if torch.isfinite(joined(back)).all() and math.isfinite(codec.law.error):
        values, lost = joined(params), joined(back) - joined(params)
        assert lost.norm() <= codec.law.error * values.norm() + codec.law.floor * max(1, len(values)) ** 0.5


@CASES
def test_the_law_says_what_the_table_says(case):
    """Exactness and the lack of bias are declared as the table has them."""
    law = make_codec(case.name).law
    assert (law.exact, law.unbiased) == (case.exact, case.unbiased)


@CASES
def test_the_mean_over_seeds(case):
    """Where it is declared, the mean of many encodings under different seeds is the value, within its own error."""
    if not case.unbiased:
        pytest.skip("declared to be biased")
    codec = make_codec(case.name)
    params = {"a": torch.linspace(-2, 2, 32).view(32, 1), "b": torch.tensor(0.3)}
    draws = 600
    seen = torch.stack(
        [
            joined(codec.decode(codec.encode(params, key), layout_of(params), key))
            for key in (key_of(seed, round=seed % 7, client=seed) for seed in range(draws))
        ]
    )
    error = seen.std(dim=0) / draws**0.5
    # Of 33 values one is over 4.5 standard errors once in 4500 tables.
    assert ((seen.mean(dim=0) - joined(params)).abs() <= 4.5 * error + 1e-5).all()


@CASES
@pytest.mark.parametrize("drawn", ["normal", "spiked", "flat", "heavy"])
def test_the_mean_loss(case, drawn):
    """Of values of four kinds no more of the squared norm is lost, in the mean over seeds, than the law says."""
    codec, draw = make_codec(case.name), np.random.default_rng(5)
    values = {
        "normal": draw.standard_normal(300),
        "spiked": draw.standard_normal(300) * 0.01 + 10.0 * (np.arange(300) % 64 == 7),
        "flat": np.sign(draw.standard_normal(300)) * 0.4 + 0.6 * (np.arange(300) % 32 == 0),
        "heavy": draw.standard_t(2, 300),
    }[drawn]
    params = {"w": torch.tensor(values, dtype=torch.float32).view(20, 15)}
    lost = []
    for seed in range(40):
        key = key_of(seed, round=seed)
        back = codec.decode(codec.encode(params, key), layout_of(params), key)
        lost.append(float((joined(back) - joined(params)).square().sum() / joined(params).square().sum()))
    assert np.mean(lost) <= 1.02 * codec.law.loss + 3 * np.std(lost) / 40**0.5 + 1e-9


@CASES
def test_the_size_derived_by_hand(case):
    """100 values take the bytes that the codec's definition says."""
    data = make_codec(case.name).encode({"w": torch.linspace(-1, 1, 100)}, key_of())
    assert case.bytes_of_100 in (len(data), None)


@CASES
def test_memory_layout_does_not_change_the_bytes(case):
    """A transposed view packs as its values read."""
    codec = make_codec(case.name)
    view = torch.arange(12.0).view(3, 4).t()
    assert codec.encode({"w": view}, key_of()) == codec.encode({"w": view.contiguous()}, key_of())


@CASES
def test_one_key_one_encoding(case):
    """The same key gives the same bytes; a codec that draws gives others in another round and for another client."""
    codec = make_codec(case.name)
    params = {"w": torch.linspace(-1, 2, 400)}
    data = codec.encode(params, key_of())
    assert codec.encode(params, key_of()) == data
    others = [codec.encode(params, key) for key in (key_of(1), key_of(round=2), key_of(client=1))]
    if case.unbiased and not case.exact and case.name not in ("rotate", "mask(period=3, unbiased=true)"):
        assert len({data, *others}) == 4


@CASES
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(case, bad):
    """A lossy codec does not take it; one without loss carries it to whoever checks what arrives."""
    codec, params = make_codec(case.name), {"w": torch.tensor([1.0, bad, 2.0])}
    if case.exact:
        back = codec.decode(codec.encode(params, key_of()), layout_of(params), key_of())
        assert not torch.isfinite(back["w"]).all()
    else:
        with pytest.raises(FrameError, match="infinite or NaN"):
            codec.encode(params, key_of())


@CASES
def test_zeros_stay_zeros(case):
    """Nothing comes of nothing, whatever is drawn."""
    codec, params = make_codec(case.name), {"w": torch.zeros(130, 3)}
    assert not codec.decode(codec.encode(params, key_of()), layout_of(params), key_of())["w"].any()


@CASES
@settings(max_examples=20)
@given(data=st.data())
def test_bytes_that_do_not_fit_are_refused(case, data):
    """Truncated and lengthened sections raise FrameError and nothing else, and so does noise of the wrong size."""
    codec = make_codec(case.name)
    params = {"a": torch.ones(3, 2), "b": torch.tensor(1.0)}
    whole = codec.encode(params, key_of())
    wrong = data.draw(
        st.one_of(
            st.integers(0, len(whole) - 1).map(lambda cut: whole[:cut]),
            st.binary(min_size=1, max_size=9).map(lambda more: whole + more),
            st.binary(max_size=60).filter(lambda noise: len(noise) != len(whole)),
        )
    )
    with pytest.raises(FrameError):
        codec.decode(wrong, layout_of(params), key_of())


def noise_does_no_harm(case, rounds):
    """Decodes bytes drawn at random and sound bytes with some changed, and expects tensors or `FrameError`."""
    codec, draw = make_codec(case.name), np.random.default_rng(len(case.name))
    params = {"a": torch.linspace(-1, 1, 60).view(6, 10), "b": torch.tensor(1.0)}
    layout, whole = layout_of(params), codec.encode(params, key_of())
    for _ in range(rounds):
        bad = bytearray(whole)
        if draw.random() < 0.2:
            bad = bytearray(draw.bytes(len(whole)))
        for place in draw.integers(len(whole), size=draw.integers(5)):
            bad[place] = draw.integers(256)
        if draw.random() < 0.1:
            del bad[draw.integers(len(bad)) :]
        try:
            back = codec.decode(bytes(bad), layout, key_of())
        except FrameError as error:
            assert "\n" not in str(error)
        else:
            assert layout_of(back) == layout


@CASES
def test_a_decoder_takes_any_bytes(case):
    """Altered sections give tensors of the layout or FrameError, nothing else."""
    noise_does_no_harm(case, 150)


@CASES
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_decoder_takes_a_million_bytes_strings(case):
    """Over the whole table, a million altered sections give tensors of the layout or FrameError."""
    noise_does_no_harm(case, -(-(10**6) // len(TABLE)))


@CASES
def test_decoded_tensors_are_memory_of_their_own(case):
    """They can be changed in place, and the bytes stay."""
    codec = make_codec(case.name)
    data = codec.encode({"a": torch.ones(4)}, key_of())
    kept = bytes(data)
    codec.decode(data, {"a": torch.Size([4])}, key_of())["a"].add_(1)
    assert data == kept


def test_codecs_have_different_digests():
    """Two parties with different codecs or options notice."""
    digests = [make_codec(case.name).digest for case in TABLE]
    digests += [make_codec(f"int8(block={block})").digest for block in (64, 128)]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 8 for digest in digests)


def test_what_is_lost_grows_with_fewer_bits():
    """Each step down in bits loses more, and rotation helps where one value stands out."""
    values = {"w": torch.randn(4096, generator=torch.Generator().manual_seed(0))}
    spiked = {"w": values["w"].index_fill(0, torch.arange(0, 4096, 64), 30.0)}

    def lost(name, params):
        codec = make_codec(name)
        back = codec.decode(codec.encode(params, key_of()), layout_of(params), key_of())
        return float((joined(back) - joined(params)).norm() / joined(params).norm())

    errors = [lost(name, values) for name in ("float32", "float16", "int8", "int4", "int2", "int1")]
    assert all(fewer < more for fewer, more in pairwise(errors))
    assert lost("rotate > int4", spiked) < 0.6 * lost("int4", spiked)


@pytest.mark.parametrize("count", [1, 8, 64, 65, 100])
def test_the_sign_has_the_mean_magnitude_of_what_is_there(count):
    """Values of one magnitude come back as they are, whatever of the last block is left empty."""
    codec, params = make_codec("int1(rounding=nearest)"), {"w": torch.ones(count) * 0.5}
    params["w"][::3] *= -1
    torch.testing.assert_close(
        codec.decode(codec.encode(params, key_of()), layout_of(params), key_of()), params, rtol=2**-7, atol=0
    )


def test_low_rank_matrices_come_back_whole():
    """A matrix of rank 2 has factors of rank 2, in 2 * (40 + 60) values instead of 2400."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 2, generator=generator) @ torch.randn(2, 60, generator=generator)
    codec = make_codec("lowrank(rank=2)")
    data = codec.encode({"w": matrix.view(40, 4, 15)}, key_of())
    assert len(data) == 4 * 2 * (40 + 60)
    back = codec.decode(data, {"w": torch.Size([40, 4, 15])}, key_of())["w"]
    torch.testing.assert_close(back.reshape(40, 60), matrix, rtol=1e-4, atol=1e-4)


def test_the_largest_values_are_chosen_by_hand():
    """Of five values the two largest magnitudes stay, in their places."""
    params = {"a": torch.tensor([0.1, -5.0]), "b": torch.tensor([0.2, 3.0, -0.3])}
    codec = make_codec("topk(fraction=0.4)")
    back = codec.decode(codec.encode(params, key_of()), layout_of(params), key_of())
    assert joined(back).tolist() == [0.0, -5.0, 0.0, 3.0, 0.0]


def test_the_mask_moves_over_all_values():
    """Ten rounds send every value once, the same ones for all clients; the eleventh begins again."""
    codec, ones = make_codec("mask(period=10)"), {"w": torch.ones(100)}

    def sent(round, client):
        key = key_of(round=round, client=client)
        return codec.decode(codec.encode(ones, key), layout_of(ones), key)["w"]

    assert sum(sent(round, client=round) for round in range(1, 11)).tolist() == [1.0] * 100
    assert torch.equal(sent(1, client=3), sent(11, client=4))


def test_a_frame_that_claims_much_takes_little_memory():
    """A Zstandard frame of a few bytes that unfolds to a gigabyte is refused after the bytes that fit."""
    import tracemalloc

    import zstandard

    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(2**28))
    section = len(bomb).to_bytes(4, "little") + bomb
    tracemalloc.start()
    with pytest.raises(FrameError):
        make_codec("zstd").decode(section, {"w": torch.Size([100])}, key_of())
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int4 > zsdt", ["unknown codec 'zsdt'", "did you mean 'zstd'?"]),
        ("int4 > int8", ["'int8", "cannot come after 'int4"]),
        ("zstd > int8", ["cannot come after 'zstd"]),
        ("zstd > zstd", ["cannot come after 'zstd"]),
        ("int4(blok=3)", ["unknown key 'blok'", "did you mean 'block'?"]),
        ("int4(block=3)", ["'block' is 3"]),
        ("rotate(block=100)", ["'block' is 100"]),
        ("topk(fraction=1.5)", ["'fraction' is 1.5"]),
        ("int4(64)", ["'64' is no option", "option=value"]),
        ("int4 >", ["is no link", "name(option=value)"]),
        ("int4 zstd", ["'int4 zstd' is no link"]),
        ("int4 @ int8", ["behind '@' stand a round and a codec"]),
        ("int4 @5", ["behind '@' stand a round and a codec"]),
        ("int4 @5 int8 @5 float16", ["[5, 5]", "must rise"]),
        ("int4 @1 int8", ["[1]", "from 2 on"]),
    ],
)
def test_a_wrong_chain_is_refused_in_one_line(text, words):
    """The message has what is wrong and what to write."""
    with pytest.raises(ConfigError) as caught:
        make_codec(text)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@given(params=tensors(LIKELY), round=st.integers(1, 12))
def test_a_later_codec_takes_over_in_its_round(params, round):
    """Each round's bytes are those of its own codec, and so are their number and what they are read as."""
    links = {1: "int2", 4: "rotate > int8", 9: "float16 > zstd"}
    codec = make_codec("int2 @4 rotate > int8 @9 float16 > zstd")
    alone, key = make_codec(links[max(first for first in links if first <= round)]), key_of(round=round)
    data = codec.encode(params, key)
    assert data == alone.encode(params, key)
    assert codec.num_bytes(layout_of(params), round) == alone.num_bytes(layout_of(params))
    back, expected = (one.decode(data, layout_of(params), key) for one in (codec, alone))
    assert all(torch.equal(back[name], expected[name]) for name in params)


def test_a_chain_with_rounds_promises_the_worst_of_them():
    """Its law is that of no round alone; its name tells the rounds, and both ends must have the same."""
    codec = make_codec("int2 @4 int8(rounding=nearest)")
    assert codec.law.error == make_codec("int2").law.error
    assert not codec.law.unbiased
    assert codec.digest not in {
        make_codec("int2 @5 int8(rounding=nearest)").digest,
        make_codec("int2").digest,
    }
    assert not make_codec("float32 @5 int8").law.exact
    assert make_codec("float32 @5 int8").until(4).law.exact
    assert make_codec(codec.name.replace("@4", " @4 ")).name == codec.name
    with pytest.raises(ConfigError, match="options in parentheses"):
        make_codec("int2 @4 int8", {"block": 32})


def test_options_belong_to_one_link():
    """Beside a chain they would be nobody's."""
    assert make_codec("int4", {"block": 32}).name == make_codec("int4(block=32)").name
    with pytest.raises(ConfigError, match="write it in parentheses"):
        make_codec("rotate > int4", {"block": 32})

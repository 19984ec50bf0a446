"""What a party says in the handshake cannot do more than be shown."""

from __future__ import annotations

import json

import pytest

from fedadapt.errors import ConfigError, FrameError
from fedadapt.experiment.config import parse_config
from fedadapt.federation.handshake import Fit, Terms, parse

HOSTILE = "bad\n2026-01-01T00:00:00+00:00 round 9 of 9: all is well\x1b[2J"


def test_a_complaint_is_one_line():
    """Line breaks and commands to a terminal in what a site complains of become text."""
    fit = parse(Fit, json.dumps({"client": 0, "problem": HOSTILE}))
    assert (
        fit.problem == "bad 2026-01-01T00:00:00+00:00 round 9 of 9: all is well\N{REPLACEMENT CHARACTER}[2J"
    )


def test_a_key_that_may_not_be_is_named_on_one_short_line():
    """The name of an unknown key comes from the sender as well, and is cut and cleaned."""
    with pytest.raises(FrameError) as caught:
        parse(Fit, json.dumps({"client": 0, HOSTILE * 100: 1}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


TERMS = {
    "run": "0" * 16, "recipe": "{}", "class_names": ["a"], "image": [3, 8, 8], "mean": [0.5] * 3, "std": [0.2] * 3,
    "backbone": "0" * 16, "backbone_bytes": 0, "layout": "0" * 16, "codec": "float32", "version": "1",
}  # fmt: skip


@pytest.mark.parametrize("change", [{"std": [0.2, 0.0, 0.2]}, {"std": [0.2] * 2}, {"mean": [0.5]}])
def test_moments_that_no_images_have_are_refused(change):
    """A site would divide by them."""
    assert parse(Terms, json.dumps(TERMS)).image == (3, 8, 8)
    with pytest.raises(FrameError):
        parse(Terms, json.dumps(TERMS | change))


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", '"a"', '{"rounds": 0}'])
def test_a_recipe_that_is_none_is_refused_in_one_line(text):
    """It comes from the server, and a site says what is wrong with it instead of ending."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert "\n" not in str(caught.value)

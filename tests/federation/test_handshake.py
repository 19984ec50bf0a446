"""What a party says in the handshake cannot do more than be shown."""

from __future__ import annotations

import json

import pytest

from fedadapt.errors import FrameError
from fedadapt.federation.handshake import Fit, parse

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

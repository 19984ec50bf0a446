"""No bytes that are not a sound frame get past a door."""

from __future__ import annotations

import pytest
from storm import storm


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_million_twisted_frames_are_refused():
    """Every one is a refusal with a reason: none is taken, none raises anything else."""
    assert storm(1_000_000, seed=0) == 0

"""No process of a federation is needed at any one instant."""

from __future__ import annotations

import pytest
from chaos import KINDS, torment


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.timeout(4 * 3600)
def test_a_federation_survives_the_death_of_each_of_its_processes(tmp_path):
    """Each kind of process is killed at six random instants: the run ends, and is the replay of what counted."""
    figures = torment(tmp_path, rounds=24, seed=0, deadline_s=30, kills=6)
    assert figures.rounds == 24
    assert all(figures.kills[kind] >= 3 for kind in KINDS)
    assert figures.updates_lost < figures.updates_asked / 2

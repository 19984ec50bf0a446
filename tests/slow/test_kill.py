"""No instant at which a run is killed costs a committed round or changes the result."""

from __future__ import annotations

import signal

import pytest
from tiny import kill_and_resume


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_at_any_instant_goes_on(tmp_path):
    """Killed at twenty instants and resumed, runs end bit for bit where one ends that was never stopped."""
    ended = kill_and_resume(tmp_path, kills=20, seed=0)
    assert -signal.SIGKILL in ended

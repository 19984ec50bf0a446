"""The numbers of a short federation stay what they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden.federation import measure

STORED = json.loads((Path(__file__).parent / "federation.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("norms", STORED)
def test_a_short_federation_has_its_stored_numbers(norms, tmp_path):
    """Losses agree within a thousandth; who holds how much, steps and every ledger byte agree exactly."""
    found, stored = measure(norms, tmp_path), STORED[norms]
    assert found["ledger"] == stored["ledger"]
    assert (found["examples"], found["steps"]) == (stored["examples"], stored["steps"])
    assert found["loss"] == pytest.approx(stored["loss"], rel=1e-3)
    assert found["train_loss"][1:] == pytest.approx(stored["train_loss"][1:], rel=1e-3)

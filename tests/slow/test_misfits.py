"""A site that has another network or insists on another recipe takes no part, and both sides say in which it differs."""

from __future__ import annotations

import re

import pytest
from chaos import hold_against_replay, recipe
from nodes import SITE, Federation

from fedadapt.backbones.weights import save_weights
from fedadapt.experiment.config import load_config
from fedadapt.runs.records import Outcome
from fedadapt.seeds import Seeds

ROUNDS = 3


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.timeout(3600)
def test_sites_that_differ_are_refused_on_both_sides(tmp_path):
    """One line each, on the site and on the server; the two that fit go on by quorum, as if they were alone."""
    text = (
        recipe(ROUNDS, 15).replace("num_clients = 3", "num_clients = 4").replace("quorum = 1", "quorum = 2")
    )
    site_with = 'weights = "other.safetensors"\n' + SITE
    with Federation(tmp_path, text, {0: SITE, 1: SITE, 2: site_with, 3: SITE}) as federation:
        make = load_config(federation.recipe).backbone.create("backbone")
        other = make(10, Seeds(1).torch("backbone"))
        save_weights(other.module, tmp_path / "site2" / "other.safetensors", {"backbone": other.name})
        another = tmp_path / "another.toml"
        another.write_text(text.replace("lr = 0.1", "lr = 0.2"))
        federation.serve()
        federation.join(0)
        federation.join(1)
        federation.join(2)
        federation.join(3, *federation.credentials(3), f"--recipe={another}")
        assert federation.finish(3000) == 0, federation.said("server")
        for client, what in ((2, "backbone"), (3, "recipe")):
            line = rf"{what} is \w+ at client {client}, the federation has \w+; all parties need the same {what}\n"
            assert re.search(f"does not fit the federation: {line}", federation.said(f"site{client}"))
            # The server says so once, however often it looks whether the site was mended.
            assert len(re.findall(rf"\(?node \d+\)? is refused: {line}", federation.said("server"))) == 1
            assert "takes part" not in federation.said(f"site{client}")
    _, records, _ = hold_against_replay(federation.run)
    for record in records:
        assert record.outcome is (Outcome.ACCEPTED if record.client < 2 else Outcome.ABSENT)
    assert len(records) == 4 * ROUNDS

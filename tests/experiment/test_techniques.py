"""Techniques in whole runs: stopped in the middle they end as if they had not been, and refusals come before the run."""

from __future__ import annotations

import pytest
from tiny import StopAfter, Stopped, outcome, tiny

from fedadapt.errors import ConfigError
from fedadapt.experiment import resume, run
from fedadapt.runs.store import RunStore

SETTINGS = ("data.limit=48", "rounds=2", "cohort=3", "data.local_test_fraction=0.3", "data.source.size=8")
TECHNIQUES = {
    "statistics": ("algorithm=scaffold", "norms=local"),
    "personal": ("algorithm=ditto", "norms=averaged"),
    "full": ("algorithm=ditto", "adapter=full"),
    "chain": (
        'algorithm={name = "chain", of = ["fedsam", "fedprox", "norm_clipping", "median", "fedadam"]}',
    ),
}
"""What the test of every algorithm by itself leaves open."""


@pytest.mark.parametrize("settings", TECHNIQUES.values(), ids=TECHNIQUES)
def test_a_stopped_run_ends_as_if_it_had_not_been(settings, tmp_path):
    """Stopped after round 1 and resumed: the same bits in state, memory, records, metrics and ledger."""
    config = tiny(*SETTINGS, *settings)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "stopped", watcher=StopAfter(1))
    assert outcome(resume(tmp_path / "stopped" / "tiny")) == outcome(whole)
    with RunStore.read(whole) as store:
        assert "client_accuracy_mean" in store.rounds()[-1].metrics


def test_what_cannot_run_leaves_nothing_behind(tmp_path):
    """The refusal comes before the run directory."""
    with pytest.raises(ConfigError, match="at least 7 clients, there are 3"):
        run(tiny(*SETTINGS, "algorithm=bulyan"), tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_personal_models_are_what_clients_are_measured_with(tmp_path):
    """At a pull of zero they are other models than the global one, and score otherwise on the clients' own samples."""
    rates = []
    for name in ("fedavg", "ditto"):
        config = tiny(*SETTINGS, f"algorithm={name}", f"name={name}", "train.epochs=6", "train.lr=0.05")
        with RunStore.read(run(config, tmp_path)) as store:
            rates.append([(r.client, r.loss, r.accuracy) for r in store.clients(2)])
    assert [(client, loss) for client, loss, _ in rates[0]] == [
        (client, loss) for client, loss, _ in rates[1]
    ]
    assert [accuracy for *_, accuracy in rates[0]] != [accuracy for *_, accuracy in rates[1]]

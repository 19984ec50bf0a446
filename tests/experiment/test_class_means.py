"""Runs whose head starts from class means."""

from __future__ import annotations

import pytest
from tiny import StopAfter, Stopped, outcome, tiny

from fedadapt.engines.local import LocalEngine
from fedadapt.errors import RunError
from fedadapt.experiment import resume, run
from fedadapt.experiment.build import build
from fedadapt.experiment.forecast import forecast
from fedadapt.federation.messages import Reply
from fedadapt.runs.store import RunStore

WARM = ("head={name='trained', start='class_means'}", "cohort=2")


@pytest.mark.parametrize("settings", [WARM, ("codec=int8", *WARM)], ids=["float32", "int8"])
def test_a_run_that_starts_from_class_means(tmp_path, monkeypatch, settings):
    """Round 0 is the exchange: foretold to the byte, better than chance before training, the same when it is resumed."""
    path = run(tiny(*settings), tmp_path / "whole")
    expected = outcome(path)
    with RunStore.read(path) as store:
        ledger = store.ledger()
    assert {entry.client for entry in ledger if entry.round == 0} == {0, 1, 2, 3}
    told = forecast(build(tiny(*settings)))
    assert told["run_bytes"] == sum(entry.num_bytes for entry in ledger)
    assert sum(told["first_bytes"].values()) == sum(e.num_bytes for e in ledger if e.round == 0)
    assert told["clients_seen"] == 4
    accuracies = [metrics["accuracy"] for _, metrics in expected["rounds"]]
    plain = [metrics["accuracy"] for _, metrics in outcome(run(tiny(), tmp_path / "plain"))["rounds"]]
    assert accuracies[0] > plain[0] + 0.2
    exchange = LocalEngine.exchange

    def dying(self, requests):
        if requests[0].round == 0:
            raise Stopped
        return exchange(self, requests)

    with pytest.raises(Stopped):
        run(tiny(*settings), tmp_path / "late", watcher=StopAfter(0))
    assert outcome(resume(tmp_path / "late" / "tiny")) == expected
    monkeypatch.setattr(LocalEngine, "exchange", dying)
    with pytest.raises(Stopped):
        run(tiny(*settings), tmp_path / "early")
    monkeypatch.setattr(LocalEngine, "exchange", exchange)
    assert outcome(resume(tmp_path / "early" / "tiny")) == expected


def test_a_run_in_which_nobody_says_class_means_ends(tmp_path, monkeypatch):
    """Nothing can be begun; the line names a client and its reason."""
    failing = lambda self, requests: [Reply(r.round, r.client, failure="fell ill") for r in requests]  # noqa: E731
    monkeypatch.setattr(LocalEngine, "exchange", failing)
    with pytest.raises(RunError, match=r"none of 4 clients gave class means.* client 0 failed: fell ill"):
        run(tiny(*WARM), tmp_path)

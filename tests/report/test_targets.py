"""Rounds and bytes to a target, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedadapt.errors import ConfigError
from fedadapt.report.gather import summarise
from fedadapt.report.targets import Reached, Target, make_targets, reach, target_columns, targets_as_json
from fedadapt.runs.results import AccuracyOf


@pytest.fixture
def runs(make_run):
    """Two runs of 1600 bytes a round; the second moves ten times that and is better once."""
    small = make_run("small", (0.1, 0.5, None, 0.7, 0.6))
    return [summarise(path) for path in (small, make_run("large", (0.1, 0.8, 0.75), scale=10))]


def test_the_first_round_that_is_good_enough_counts(runs):
    """In round 3 after 3 * 1600 bytes, though round 4 is worse; round 0 has moved nothing."""
    assert reach(runs[0], Target("", 0.7)) == Reached(3, 4800)
    assert reach(runs[0], Target("", 0.6)) == Reached(3, 4800)
    assert reach(runs[0], Target("", 0.05)) == Reached(0, 0)
    assert reach(runs[0], Target("", 0.71)) is None
    assert reach(runs[1], Target("", 0.7)) == Reached(1, 16000)


def test_shares_are_of_the_best_run_or_of_a_named_one(runs):
    """75 % of 0.8 is 0.6, and of the small run's 0.7 is 0.525; plain numbers are what they are."""
    assert [t.accuracy for t in make_targets(["75%", "0.3", "1"], runs)] == pytest.approx([0.6, 0.3, 1.0])
    assert [t.accuracy for t in make_targets(["75%"], runs, "small")] == pytest.approx([0.525])


def test_a_share_is_of_one_kind_of_model(runs):
    """What clients' own models reach on samples of their own is no measure for the one model of all."""
    (target,) = make_targets(["75%"], runs, "small")
    assert reach(runs[0], replace(target, of=AccuracyOf.OWN)) is None
    assert reach(runs[0], replace(target, of=AccuracyOf.GLOBAL)) == reach(runs[0], target)


def test_a_run_that_measured_nothing_has_no_shares(make_run):
    """There is nothing to take a share of, and a plain number is never reached."""
    run = summarise(make_run(accuracies=(None, None)))
    assert make_targets(["90%"], [run]) == []
    (target,) = make_targets(["0.9"], [run])
    assert targets_as_json(run, [target]) == [
        {"target": "0.9", "accuracy": 0.9, "round": None, "bytes": None}
    ]


def test_a_table_of_targets(runs):
    """A column for each, headed by what was asked for and what that means."""
    columns = target_columns(runs, make_targets(["75%", "0.75"], runs))
    assert {column.title: column.cells for column in columns} == {
        "run": ("small", "large"),
        "75%: 60.0 %": ("round 3, 4.69 KiB", "round 1, 15.6 KiB"),
        "75.0 %": ("–", "round 1, 15.6 KiB"),
    }


@pytest.mark.parametrize("text", ["0", "1.2", "120%", "-5%", "much", "", "nan", "inf%"])
def test_what_is_no_target_is_refused(runs, text):
    """In one line, with what is allowed."""
    with pytest.raises(ConfigError, match=r"such as 0\.9, or a share of the best one, such as 95%; got"):
        make_targets([text], runs)


def test_an_unknown_reference_is_refused(runs):
    """With the names that there are."""
    with pytest.raises(ConfigError, match="no run is called 'big'; --reference takes one of small, large"):
        make_targets(["90%"], runs, "big")

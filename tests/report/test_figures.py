"""What the figures draw, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedadapt.report import figures, plate
from fedadapt.report.gather import summarise
from fedadapt.runs.records import Direction


def test_accuracy_is_drawn_over_bytes_of_both_directions(make_run):
    """Two rounds of 1600 bytes put their accuracies at 1600 and 3200; round 0 is not on a log axis."""
    run = summarise(make_run())
    assert figures.moved_points(run) == [(1, 1600, 0.5), (2, 3200, 0.75)]
    (trace,) = figures.accuracy_by_bytes([run]).data
    assert list(trace.x) == [1600 / 1024**2, 3200 / 1024**2]
    assert list(trace.y) == [50, 75]


def test_bars_are_bytes_while_they_can_be_compared(make_run):
    """Runs of similar bytes share an axis in MiB; a run of 1000 times the bytes makes all bars shares."""
    near = [summarise(make_run("a")), summarise(make_run("b", scale=2))]
    far = [near[0], summarise(make_run("c", scale=1000))]
    assert [trace.name for trace in figures.bytes_by_group(near).data] == ["adapter", "framing"]
    assert list(figures.bytes_by_group(near).data[0].x) == [n / 1024**2 for n in (1600, 800, 3200, 1600)]
    shares = [list(trace.x) for trace in figures.bytes_by_group(far).data]
    assert [sum(parts) for parts in zip(*shares, strict=True)] == pytest.approx([100] * 4)
    assert shares[0][0] == 80


def test_bars_leave_out_runs_that_moved_nothing(make_run):
    """A run before its first round has no bar among those that have."""
    runs = [summarise(make_run("a")), summarise(make_run("b", (0.1,)))]
    titles = [annotation.text for annotation in figures.bytes_by_group(runs).layout.annotations]
    assert titles == ["a, download: 1.95 KiB", "a, upload: 1.17 KiB"]
    assert len(titles) == len(Direction)


def test_runs_differ_in_more_than_colour(make_run):
    """No two of 28 runs have the same colour, dash and symbol."""
    run = summarise(make_run())
    traces = figures.accuracy_by_round([run] * 28).data
    assert len({(t.line.color, t.line.dash, t.marker.symbol) for t in traces}) == 28


def test_points_without_lines_are_told_apart():
    """No two of 49 values of a study have the same colour and symbol."""
    assert len({(plate.colour(index), plate.marker(index)) for index in range(49)}) == 49


def test_labels_are_shown_as_written(make_run):
    """Plotly reads tags in labels, so they are escaped; a repeated class name gets its number."""
    run = summarise(make_run("<b>x</b> & y"))
    assert figures.accuracy_by_round([run]).data[0].name == "&lt;b&gt;x&lt;/b&gt; &amp; y"
    heat = figures.label_heat_map([[1, 2]], ["<i>", "<i>"]).data[0]
    assert list(heat.x) == ["&lt;i&gt; (0)", "&lt;i&gt; (1)"]


@pytest.mark.parametrize(("classes", "bars"), [(28, 28), (29, 1)])
def test_bars_are_stacked_while_classes_can_be_told_apart(classes, bars):
    """Up to seven colours times four patterns are stacked; more classes give the clients' sizes."""
    drawn = figures.label_bars([[1] * classes], [str(index) for index in range(classes)]).data
    assert len({(bar.marker.color, bar.marker.pattern.shape) for bar in drawn}) == bars
    assert sum(bar.x[0] for bar in drawn) == classes


@given(st.floats(1e-6, 1e6), st.floats(1, 1e9))
def test_log_ticks_surround_the_values(low, factor):
    """Ticks rise, begin at or below the lowest value and end at or above the highest, and are few."""
    ticks = figures.log_ticks(low, low * factor)
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low
    assert ticks[-1] >= low * factor
    assert len(ticks) <= 16

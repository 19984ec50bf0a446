"""The log of a run holds the lines it was given, and nothing that a site could write into it otherwise."""

from __future__ import annotations

from datetime import datetime

from fedadapt.runs.log import LOG, last_lines, say


def test_a_line_has_the_time_it_was_written(tmp_path):
    """Each line begins with a time that has a zone; the last ones come back in order."""
    for number in range(5):
        say(tmp_path, f"round {number}")
    times, lines = zip(*(line.split(" ", 1) for line in last_lines(tmp_path, 3)), strict=True)
    assert lines == ("round 2", "round 3", "round 4")
    assert all(datetime.fromisoformat(time).tzinfo for time in times)


def test_what_a_site_says_stays_one_line(tmp_path):
    """Line breaks of any kind and commands to a terminal become text, so that no site can forge or hide a line."""
    say(tmp_path, "client 0 failed: a\nb\r\nc\x1b[2J\x85d\u2028e\x9b1A")
    text = (tmp_path / LOG).read_text(encoding="utf-8")
    assert (
        text.split(" ", 1)[1]
        == "client 0 failed: a b c\N{REPLACEMENT CHARACTER}[2J d e\N{REPLACEMENT CHARACTER}1A\n"
    )


def test_a_long_log_is_read_from_its_end(tmp_path):
    """Of a log of megabytes the last lines are whole, and a run without a log has none."""
    assert last_lines(tmp_path, 2) == ()
    (tmp_path / LOG).write_text("".join(f"{number:07d} ä\n" for number in range(200_000)), encoding="utf-8")
    assert last_lines(tmp_path, 2) == ("0199998 ä", "0199999 ä")

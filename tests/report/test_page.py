"""The page as text: what is in it, what is escaped, and how it is written."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from fedadapt.errors import ConfigError, RunError
from fedadapt.report.document import element, markup
from fedadapt.report.gather import summarise
from fedadapt.report.page import render, write_page

EVIL = "</script><script>alert('x')</script>&\"<img src=x>"


class Elements(HTMLParser):
    """Collects every start tag with its attributes, and the text of headings and cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.inside in ("td", "th", "small") and self.cells:
            self.cells[-1] += data

    def handle_endtag(self, tag):
        self.inside = ""

    def all(self, tag):
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def page(paths, **options):
    """The elements of the page about some runs."""
    return Elements(render([summarise(path) for path in paths], **options))


def test_the_page_is_one_file(make_run):
    """No element loads anything, and the policy forbids the browser to."""
    found = page([make_run(counts=[[3, 0], [1, 2]])])
    loads = [
        (tag, name, value)
        for tag, attributes in found.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert loads == [("link", "href", "data:,")]
    policy = [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'")


def test_text_is_escaped_everywhere(make_run):
    """A hostile name, class or setting neither ends a script nor makes an element."""
    path = make_run(EVIL, counts=[[3, 0], [1, 2]], changes={"versions": {EVIL: EVIL}})
    harmless = make_run("plain", counts=[[3, 0], [1, 2]], changes={"versions": {"plain": "plain"}})
    evil, plain = page([path]), page([harmless])
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert EVIL in evil.cells
    assert "alert('x')</script>" not in render([summarise(path)])


def test_the_summary_holds_the_comparison(make_run):
    """Cells of the summary are those of the comparison, with numbers by hand."""
    found = page([make_run("small"), make_run("large", scale=20)])
    for cell in ("smallparallel, fedavg", "75.0 %", "+0.0", "1.17 KiB", "62.5 KiB", "5 %", "100 %"):
        assert cell in found.cells


def test_every_figure_has_words_and_numbers(make_run):
    """Each figure has a description for who does not see it, and a captioned table in a fold."""
    found = page([make_run(counts=[[3, 0], [1, 2]])])
    plots = [attributes for attributes in found.all("div") if attributes.get("class") == "plot"]
    assert [plot["id"] for plot in plots] == [
        "accuracy-by-round",
        "accuracy-by-bytes",
        "loss-by-round",
        "bytes-by-group",
        "holdings-0",
        "accuracy-by-client",
    ]
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    assert len(found.all("table")) == len(found.all("caption"))
    assert len(found.all("h1")) == 1


def test_runs_on_one_partition_share_its_map(make_run):
    """Runs with equal counts have one map, another partition has its own, and none is drawn without counts."""
    one, other = [[3, 0], [1, 2]], [[1, 1], [2, 2]]
    paths = [make_run("a", counts=one), make_run("b", counts=one), make_run("c", counts=other), make_run("d")]
    ids = [attributes.get("id") or "" for attributes in page(paths).all("div")]
    assert [name for name in ids if name.startswith("holdings")] == ["holdings-0", "holdings-1"]


def test_a_run_before_training_renders(make_run):
    """Round 0 alone gives a page that says that nothing has moved."""
    text = render([summarise(make_run(accuracies=(0.1,), planned=5))])
    assert text.count("Nothing has moved yet.") == 2
    assert "0 of 5" in text


def test_a_run_that_measured_nothing_renders(make_run):
    """Without any accuracy there are no curves, and the bytes are still told."""
    found = page([make_run(accuracies=(None, None))])
    assert [a["id"] for a in found.all("div") if a.get("class") == "plot"] == [
        "bytes-by-group",
        "accuracy-by-client",
    ]


def test_a_validation_split_is_not_called_a_test_set(make_run):
    """The page names the split that the run measured on."""
    text = render([summarise(make_run(changes={"data": {"measured_on": "validation"}}))])
    assert "On the validation split." in text
    assert "global test set" not in text


@pytest.mark.parametrize(("planned", "live_s", "refreshes"), [(9, 5, ["5"]), (2, 5, []), (9, None, [])])
def test_only_a_live_page_of_a_run_that_goes_on_refreshes(make_run, planned, live_s, refreshes):
    """The browser reads the page again only if asked to, and only until the run is finished."""
    found = page([make_run(planned=planned)], live_s=live_s)
    assert [a["content"] for a in found.all("meta") if a.get("http-equiv") == "refresh"] == refreshes


def test_the_same_runs_give_the_same_page(make_run, tmp_path):
    """Two writes are equal byte for byte, replace what was there, and leave no other file."""
    path, folder = make_run(), tmp_path / "deep" / "er"
    first = write_page([path], folder / "a.html").read_bytes()
    (folder / "a.html").write_text("old")
    assert write_page([path], folder / "a.html").read_bytes() == first
    assert [file.name for file in folder.iterdir()] == ["a.html"]


def test_a_page_that_cannot_be_written_is_one_line(make_run, tmp_path):
    """A directory in the way ends in one line, and nothing is left beside it."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*taken"):
        write_page([make_run()], tmp_path / "taken")
    assert list(tmp_path.glob("*.part")) == list(tmp_path.glob(".*.part")) == []


def test_no_runs_are_refused(tmp_path):
    """A report about nothing says what it needs."""
    with pytest.raises(ConfigError, match="at least one run"):
        write_page([], tmp_path / "page.html")


def test_markup_escapes_what_is_not_markup():
    """Text and attributes are escaped, markup is not escaped twice."""
    assert element("p", "<", markup("&"), title='"').text == '<p title="&quot;">&lt;&amp;</p>'


def test_figures_hold_no_tag(make_run):
    """The data of figures has no character that could end their script element."""
    text = render([summarise(make_run(EVIL))])
    blocks = re.findall(
        r'<script type="application/json" id="[a-z0-9-]+">(.*?)</script>', text, flags=re.DOTALL
    )
    assert len(blocks) == 5
    assert [block for block in blocks if "<" in block] == []

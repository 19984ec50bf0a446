"""The pages in a real browser: they draw, follow its colours, fit a phone, and ask for nothing."""

from __future__ import annotations

import pytest

from fedadapt.report.page import write_page
from fedadapt.report.partition import partition_page

EVIL = "<script>document.title = 'taken'</script><b>bold</b>"


@pytest.fixture
def report(make_run, tmp_path):
    """A page about two runs, one with a hostile name."""
    counts = [[30, 0], [10, 20]]
    runs = [make_run(EVIL, counts=counts), make_run("full", scale=1000, counts=counts)]
    return write_page(runs, tmp_path / "report.html")


@pytest.fixture
def before_training(make_run, tmp_path):
    """A page about a run that has only begun."""
    return write_page([make_run(accuracies=(0.1,), planned=9)], tmp_path / "begun.html")


@pytest.fixture
def partition(tmp_path):
    """A page about who holds what, of more clients and classes than have their numbers written in."""
    counts = [[(client * number) % 7 for number in range(12)] for client in range(40)]
    names = [f"class {number}" for number in range(12)]
    return partition_page(counts, names, {"size Gini": 0.5}, "forty clients", tmp_path / "partition.html")


@pytest.mark.parametrize(("page", "plots"), [("report", 6), ("before_training", 2), ("partition", 2)])
def test_every_figure_is_drawn(browser, request, page, plots):
    """Each figure is an SVG, the console stays silent, and nothing but the file is asked for."""
    path = request.getfixturevalue(page)
    browser.open(path)
    assert browser.ask("document.querySelectorAll('.plot').length") == plots
    assert browser.ask("document.querySelectorAll('.plot svg.main-svg').length") >= plots
    assert browser.log() == []
    elsewhere = [url for url in browser.requests() if not url.startswith(("data:", "blob:"))]
    assert elsewhere == [path.as_uri()]


def test_names_are_shown_and_not_run(browser, report):
    """A script in a run's name is read as text by the page and by its figures."""
    browser.open(report)
    assert browser.ask("document.title") == "2 runs compared – fedadapt"
    assert browser.ask("document.querySelector('#accuracy-by-round .legendtext').textContent") == EVIL
    assert EVIL in browser.ask("document.querySelector('table').textContent")


def test_figures_follow_the_scheme(browser, report):
    """Page, text and grid of figures have the colours of light or dark, also when the system changes them."""
    light = ("rgb(255, 255, 255)", "#1b1f24", "#e8ebee")
    dark = ("rgb(19, 22, 26)", "#e7eaee", "#262c33")
    script = """(() => { const layout = document.getElementById('accuracy-by-round').layout;
        return [getComputedStyle(document.body).backgroundColor, layout.font.color, layout.xaxis.gridcolor]; })()"""
    browser.open(report, scheme="dark")
    assert tuple(browser.ask(script)) == dark
    browser.prefer("light")
    browser.wait(lambda: tuple(browser.ask(script)) == light)
    assert browser.ask("document.getElementById('holdings-0').data[0].colorscale[0][1]") == "#f1f4f7"
    assert browser.log() == []


@pytest.mark.parametrize("page", ["report", "before_training", "partition"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(browser, request, page, width):
    """The body never scrolls sideways, on a phone or a desk; wide tables scroll by themselves."""
    browser.open(request.getfixturevalue(page), width=width)
    assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.ask(
        "[...document.querySelectorAll('.plot')].every(p => p.getBoundingClientRect().width <= innerWidth)"
    )


def test_numbers_open_from_the_keyboard(browser, report):
    """The table below a figure is closed at first, and its summary takes the focus and opens it."""
    browser.open(report)
    assert browser.ask("document.querySelectorAll('details[open]').length") == 0
    browser.press_enter("figure summary")
    assert browser.ask("document.querySelector('figure details').open")


def test_a_figure_is_saved_without_a_request(browser, report):
    """Saving a figure makes an SVG of it in the page, with nothing asked for elsewhere."""
    browser.open(report)
    browser.requests()
    browser.press_enter("figure .save")
    browser.wait(lambda: any(url.startswith("blob:") for url in browser.requests()))
    assert browser.log() == []

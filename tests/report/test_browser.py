"""The pages in a real browser: they draw, follow its colours, fit a phone, and ask for nothing."""

from __future__ import annotations

import pytest

from fedadapt.report.page import write_page
from fedadapt.report.partition import partition_page
from fedadapt.runs.store import RunStore

EVIL = "<script>document.title = 'taken'</script><b>bold</b>"


@pytest.fixture(scope="module")
def pages(make_lasting_run, tmp_path_factory):
    """Two runs, one with a hostile name; a run that has only begun; and forty clients with twelve classes."""
    folder = tmp_path_factory.mktemp("pages")
    counts = [[30, 0], [10, 20]]
    runs = [make_lasting_run(EVIL, counts=counts), make_lasting_run("full", scale=1000, counts=counts)]
    held = [[(client * number) % 7 for number in range(12)] for client in range(40)]
    names = [f"class {number}" for number in range(12)]
    return {
        "report": write_page(runs, folder / "report.html"),
        "begun": write_page([make_lasting_run(accuracies=(0.1,), planned=9)], folder / "begun.html"),
        "partition": partition_page(held, names, {"size Gini": 0.5}, "forty clients", folder / "held.html"),
    }


@pytest.mark.parametrize(("page", "plots"), [("begun", 2), ("partition", 2), ("report", 6)])
def test_every_figure_is_drawn(browser, pages, page, plots):
    """Each figure is an SVG, the console stays silent, and nothing but the file is asked for.

    And the body never scrolls sideways, on a phone or a desk: wide tables scroll by themselves.
    """
    browser.open(pages[page])
    assert browser.ask("document.querySelectorAll('.plot').length") == plots
    drawn = "[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg.main-svg'))"
    assert browser.ask(drawn)
    assert browser.log() == []
    elsewhere = [url for url in browser.requests() if not url.startswith(("data:", "blob:"))]
    assert elsewhere == [pages[page].as_uri()]
    narrow = "[...document.querySelectorAll('svg.main-svg')].every(s => s.getBoundingClientRect().right <= innerWidth)"
    for width in (360, 1200):
        browser.open(pages[page], width=width)
        browser.wait(lambda: browser.ask(narrow))
        assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth")


def test_names_are_shown_and_not_run(browser, pages):
    """A script in a run's name is read as text by the page and by its figures."""
    browser.open(pages["report"])
    assert browser.ask("document.title") == "2 runs compared – fedadapt"
    assert browser.ask("document.querySelector('#accuracy-by-round .legendtext').textContent") == EVIL
    assert EVIL in browser.ask("document.querySelector('table').textContent")


def test_figures_follow_the_scheme(browser, pages):
    """Page, text, grid and colour scale have the colours of light or dark, as the system changes them."""
    script = """[getComputedStyle(document.body).backgroundColor,
        document.getElementById('accuracy-by-round').layout.font.color,
        document.getElementById('accuracy-by-round').layout.xaxis.gridcolor,
        document.getElementById('holdings-0').data[0].colorscale[0][1]]"""
    browser.open(pages["report"], scheme="dark")
    browser.wait(lambda: browser.ask(script) == ["rgb(19, 22, 26)", "#e7eaee", "#262c33", "#1d2229"])
    browser.prefer("light")
    browser.wait(lambda: browser.ask(script) == ["rgb(255, 255, 255)", "#1b1f24", "#e8ebee", "#f1f4f7"])
    assert browser.log() == []


def test_numbers_open_from_the_keyboard(browser, pages):
    """The table below a figure is closed at first, and its summary takes the focus and opens it."""
    browser.open(pages["report"])
    assert browser.ask("document.querySelectorAll('details[open]').length") == 0
    browser.press_enter("figure summary")
    assert browser.ask("document.querySelector('figure details').open")


def test_a_figure_is_saved_for_paper(browser, pages):
    """Saving a figure gives an SVG without the colours of a scheme, and asks for nothing elsewhere."""
    browser.open(pages["report"], scheme="dark")
    browser.press_enter("figure .save")
    saved = browser.downloads / "accuracy-by-round.svg"
    browser.wait(saved.exists)
    text = saved.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "rgb(231, 234, 238)" not in text
    assert browser.log() == []
    assert [url for url in browser.requests() if url.startswith("http")] == []


def test_a_live_page_follows_the_run(browser, make_lasting_run, make_round, tmp_path):
    """The page shows each round that was written, where the reader was and with what he opened, until the end."""
    path = make_lasting_run(accuracies=(0.1, 0.2), planned=3)
    page = write_page([path], tmp_path / "live.html", live_s=1)
    browser.open(page)
    leave = "(document.querySelector('figure details').open = true, window.scrollTo(0, 700), true)"
    browser.wait_for_reload(lambda: browser.ask(leave))
    rounds = "document.querySelector('.facts div:nth-child(4)').textContent"
    seen = "[document.querySelector('figure details').open, document.querySelectorAll('details[open]').length, scrollY]"
    for number, told in ((2, "rounds, running2 of 3"), (3, "rounds, finished3")):
        with RunStore.open(path) as store:
            store.commit(make_round(number, {"accuracy": 0.3}))
            write_page([path], page, live_s=1)
            browser.wait_for_reload(lambda told=told: browser.ask(rounds) == told)
        browser.wait_for_reload(lambda: browser.ask(seen) == [True, 1, 700])
    browser.wait(lambda: browser.ask("document.documentElement.dataset.drawn"))
    assert browser.ask("document.documentElement.dataset.refresh") is None
    assert browser.log() == []
    assert {url for url in browser.requests() if not url.startswith(("data:", "blob:"))} == {page.as_uri()}

"""What ``fedadapt study`` says is what it does, whatever values and reasons are called."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from study_files import SEARCH, STUDY, write_study

from fedadapt.cli.study_progress import StudyProgress, compared, foretold, outcomes
from fedadapt.experiment.study.compare import compare
from fedadapt.experiment.study.file import load_study
from fedadapt.experiment.study.grid import make_plan, places
from fedadapt.runs.results import CellResult, Status

REASON = "no images in [/data/x]; run: pip install 'fedadapt[ray]'"


@pytest.fixture
def said():
    """A console, and what was printed on it."""
    text = io.StringIO()
    return Console(file=text, width=400, highlight=False), text


def test_brackets_are_text(tmp_path, said):
    """Names of values and reasons stand as they are; what looks like markup of a terminal is none, and ends nothing."""
    console, text = said
    study = load_study(
        write_study(tmp_path, STUDY.replace("head =", '"[r=8]" =').replace("seeds = [0, 1]", ""))
    )
    plan = make_plan(study, places(study), {})
    found = {c.digest: CellResult(c.digest, Status.FAILED, {}, REASON) for c in plan.cells.values()}
    with StudyProgress(console) as progress:
        progress.started(plan.cells[3])
        progress.ended(plan.cells[3], found[plan.cells[3].digest])
    console.print(outcomes(plan, found))
    for part in foretold(study, plan, {}, {}, (1, 1)):
        console.print(part)
    lines = text.getvalue().splitlines()
    assert sum(REASON in line for line in lines) == 1 + len(plan.cells)
    assert sum("[r=8]" in line for line in lines) == 1 + 2 + 1 + 2


def test_cells_that_never_began_are_compared(tmp_path, said):
    """They failed here and there, and moved nothing that could be counted."""
    console, text = said
    study = load_study(write_study(tmp_path, STUDY))
    plan = make_plan(study, places(study), {})
    found = {c.digest: CellResult(c.digest, Status.FAILED, {}, REASON) for c in plan.cells.values()}
    console.print(compared(compare(plan, found, found)))
    assert text.getvalue().count("agrees") == len(plan.cells)


def test_searches_that_are_known_are_not_foretold(tmp_path, said):
    """With rates from elsewhere only the cells of the grid are left."""
    console, text = said
    study = load_study(write_study(tmp_path, STUDY + SEARCH))
    searches = make_plan(study, places(study), {}).searches
    known = {c.digest: CellResult(c.digest, Status.DONE, {}, accuracy=0.5) for c in searches}
    for part in foretold(study, make_plan(study, places(study), known), {}, known, (1, 1)):
        console.print(part)
    assert "8 cells and 4 short runs of the search; 8 are left to be run" in text.getvalue()

"""A study's page says what its cells say: means, differences by seed, bytes to a target, and what did not work."""

from __future__ import annotations

import csv
import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from fedadapt.errors import RunError
from fedadapt.experiment.study.file import StudyConfig
from fedadapt.report.plates import plates
from fedadapt.report.results import write_results
from fedadapt.report.study import read_study
from fedadapt.runs.ledger import LedgerTotal
from fedadapt.runs.records import ClientRecord, Direction, Outcome, RoundSummary
from fedadapt.runs.results import CellResult, PlaceResult, Results, RunRecord, Status

ROUNDS = 4
FULL, SMALL = (0.20, 0.40, 0.60, 0.80), (0.10, 0.50, 0.74, 0.79)
"""Accuracy after each round, with seed 0; each further seed adds 0.01, to `small` twice that."""


def record(accuracies, bytes_a_round):
    """A run of one client that uploads as many bytes in each round and downloads none."""
    return RunRecord(
        {"config": {"name": "x", "rounds": ROUNDS}, "hardware": {"processor": "a chip"}, "versions": {"torch": "2"}},
        [RoundSummary(0, {"accuracy": 0.1}, 0.0, 0.0)]
        + [RoundSummary(n, {"accuracy": a}, 1.0, 2.0) for n, a in enumerate(accuracies, start=1)],
        [ClientRecord(n, 0, Outcome.ACCEPTED, 10, 1, 0.5) for n in range(1, ROUNDS + 1)],
        [LedgerTotal(n, Direction.UPLOAD, "adapter", bytes_a_round) for n in range(1, ROUNDS + 1)],
    )  # fmt: skip


def document(**more):
    """What a study file says, with all that is left out."""
    axes = {"trainable": {"full": {}, "small": {}, "wild": {}}, "skew": {"iid": {}, "strong": {}}}
    report = {"compare": "trainable", "reference": "full", "claim": ["small"], "along": ["skew"]}
    told = {"name": "made", "recipe": "r.toml", "seeds": [0, 1, 2], "axes": axes, "report": report, **more}
    return StudyConfig.model_validate(told).model_dump(mode="json")


@pytest.fixture
def made(tmp_path):
    """Results of three seeds: `small` moves a tenth of the bytes of `full`, `wild` diverged; one rate was searched for."""
    search = {"values": [0.1, 0.3], "per": ["trainable"]}
    with Results.write(tmp_path / "made") as results:
        standing, number = [], itertools.count(1)
        for seed, skew, value in itertools.product(range(3), ("iid", "strong"), ("full", "small", "wild")):
            digest = f"{value}-{skew}-{seed}"
            labels = {"trainable": value, "skew": skew, "seed": str(seed)}
            standing.append(PlaceResult("grid", next(number), labels, digest))
            if value == "wild":
                results.keep(CellResult(digest, Status.FAILED, {}, "training diverged"))
                continue
            rise = 0.01 * seed * (2 if value == "small" else 1)
            accuracies = [a + rise for a in (FULL if value == "full" else SMALL)]
            told = record(accuracies, 1000 if value == "full" else 100)
            results.keep(CellResult(digest, Status.DONE, {}, record=told, accuracy=told.accuracy))
        for rate, accuracy in (("0.1", 0.3), ("0.3", 0.4)):
            results.keep(CellResult(f"s{rate}", Status.DONE, {}, accuracy=accuracy))
            standing.append(PlaceResult("search", 0, {"trainable": "full", "train.lr": rate}, f"s{rate}"))
            # One of the second set's rates, and both of the third's, wait for their turn.
            standing.append(PlaceResult("search", 0, {"trainable": "small", "train.lr": rate}, f"t{rate}"))
            standing.append(PlaceResult("search", 0, {"trainable": "wild", "train.lr": rate}, f"w{rate}"))
        results.keep(CellResult("t0.1", Status.DONE, {}, accuracy=0.35))
        given = ["data.source.path=data/my images.npz"]
        results.describe(document(search=search) | {"given": given, "file": "my/made.toml"}, standing)
    return tmp_path / "made" / "results.sqlite"


def test_a_search_that_the_machine_spoilt_has_no_pick(made):
    """Another rate may win when the broken run is done again."""
    with Results.write(made.parent) as results:
        results.keep(CellResult("s0.1", Status.BROKEN, {}, "the disk is full"))
    out = made.parent / "out"
    write_results(made, out)
    assert "| full | – | 40.00 | – |" in (out / "README.md").read_text(encoding="utf-8")


def test_what_was_not_run_yet_has_no_panel(made):
    """An empty one would only make the figure longer."""
    study = read_study(made)
    more = PlaceResult("grid", 99, {"trainable": "full", "skew": "none yet", "seed": "0"}, "nowhere")
    grown = replace(study, places=[*study.places, more])
    assert len(grown.groups) == len(study.groups) + 1
    assert [plate.height_in for plate in plates(grown)] == [plate.height_in for plate in plates(study)]


def test_differences_are_by_seed(made):
    """Differences of -1, 0 and 1 points have mean 0 and deviation 1; t = 0 then, so p = 1; a tenth of the bytes moved.

    full ends at 0.80, 0.81, 0.82 and small at 0.79, 0.81, 0.83.
    """
    group = read_study(made).groups[0]
    difference = group.difference("small")
    assert difference.points == pytest.approx((-1, 0, 1))
    assert difference.spread.mean == pytest.approx(0)
    assert difference.spread.deviation == pytest.approx(1)
    assert difference.p == pytest.approx(1)
    assert difference.share == pytest.approx(0.1)
    assert group.difference("wild") is None


def test_bytes_are_compared_over_the_seeds_that_both_have(made, tmp_path):
    """A seed that one lacks and that moved more than the others changes no share; those that failed are counted."""
    with Results.write(made.parent) as results:
        results.keep(CellResult("small-iid-2", Status.FAILED, {}, "training diverged"))
        told = record(FULL, 50_000)
        results.keep(CellResult("full-iid-2", Status.DONE, {}, record=told, accuracy=told.accuracy))
    group = next(group for group in read_study(made).groups if group.labels["skew"] == "iid")
    assert group.difference("small").share == pytest.approx(0.1)
    write_results(made, tmp_path / "out")
    assert "| 2 of 3 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_same_difference_with_every_seed_is_no_evidence(made):
    """One point with each of three seeds has no p, and one point less is within one point, whatever floats make of 0.01."""
    study = read_study(made)
    above = {"small-iid-0": 0.761, "small-iid-1": 0.21, "small-iid-2": 0.75}
    below = {"full-iid-0": 0.751, "full-iid-1": 0.2, "full-iid-2": 0.74}
    for digest, accuracy in (above | below).items():
        study.cells[digest].record.rounds[-1].metrics["accuracy"] = accuracy
    assert len({100 * (above[f"small-iid-{n}"] - below[f"full-iid-{n}"]) for n in range(3)}) > 1
    group = replace(study).groups[0]
    assert (group.difference("small").points, group.difference("small").p) == ((1, 1, 1), None)
    turned = replace(group, reference="small").difference("full")
    assert (turned.points, turned.p) == ((-1, -1, -1), None)


def test_unlike_accuracies_have_no_difference(made):
    """Clients' own models on their own samples are no better or worse than one model on the test set: no row says so."""
    study = read_study(made)
    kept = {"plan": [{"travels": "kept"}]}
    for cell in study.cells.values():
        if cell.digest == "small-iid-0":
            cell.record.manifest.update(kept)
            cell.record.rounds[-1].metrics["client_accuracy_mean"] = 0.95
    group = replace(
        study, places=[place for place in study.places if place.labels.get("seed") == "0"]
    ).groups[0]
    assert group.arms["small"].accuracy.mean == 0.95
    assert group.difference("small") is None
    assert not group.alike("small")


def test_bytes_to_a_target_are_those_of_the_first_round_that_reaches_it(made):
    """Full ends at 0.81 in the mean; 90 % of it is 0.729: full needs all 4000 bytes, small 300, for 0.76 after round 3.

    99 % are 0.8019, which small reaches at the end, with 0.81.
    """
    group = read_study(made).groups[0]
    ninety, _, ninety_nine = group.targets()
    assert ninety == pytest.approx(0.729)
    assert (group.arms["full"].bytes_to(ninety), group.arms["small"].bytes_to(ninety)) == (4000, 300)
    assert group.arms["small"].bytes_to(ninety_nine) == 400
    assert group.arms["small"].bytes_to(0.9) is None


def test_the_page_says_what_the_cells_say(made, tmp_path):
    """The claim is counted, rows have mean, deviation and share, failures their reason, and an edge of a search an arrow."""
    page = write_results(made, tmp_path / "out").read_text(encoding="utf-8")
    assert (
        "**small**: no more than 1 points below full, at no more than 12 % of the bytes, in 2 of 2 rows"
        in page
    )
    assert "| iid | small | 81.00 ± 2.00 | +0.00 ± 1.00 | 1 | 400 B | 10 % | 3 |" in page
    assert "| iid | small | 300 B (13.3x) |" in page
    assert "| iid | wild | failed | – | – | – | – | 0 of 3 |" in page
    assert "- grid trainable=wild skew=iid seed=0: training diverged" in page
    assert "| full | 30.00 | 40.00 | 0.3 → |" in page
    assert "| small | 35.00 | – | – |" in page
    assert "| wild | – | – |" not in page
    assert "12 of 18 cells of `made.toml` that are in the grid so far, 3 of 3 seeds" in page
    assert "Run on a chip, torch 2." in page


def test_what_failed_counts_against_the_claim(made, tmp_path):
    """A row in which the claimed set has no run because it failed is a row; one that the machine spoilt is none yet."""
    with Results.write(made.parent) as results:
        for seed in range(3):
            results.keep(CellResult(f"small-strong-{seed}", Status.FAILED, {}, "training diverged"))
    page = write_results(made, tmp_path / "out").read_text(encoding="utf-8")
    assert "in 1 of 2 rows, in 1 of which it failed; mean" in page
    with Results.write(made.parent) as results:
        for seed in range(3):
            results.keep(CellResult(f"small-strong-{seed}", Status.BROKEN, {}, "no room"))
    page = write_results(made, tmp_path / "out").read_text(encoding="utf-8")
    assert "in 1 of 1 rows; mean" in page


def test_a_claim_that_failed_everywhere_is_still_made(made, tmp_path):
    """It holds in none of the rows."""
    with Results.write(made.parent) as results:
        for skew, seed in itertools.product(("iid", "strong"), range(3)):
            results.keep(CellResult(f"small-{skew}-{seed}", Status.FAILED, {}, "training diverged"))
    page = write_results(made, tmp_path / "out").read_text(encoding="utf-8")
    assert "in 0 of 2 rows, in 2 of which it failed." in page


def test_the_page_says_how_to_run_a_cell_again(made, tmp_path, monkeypatch):
    """With what was set beside the study file, from where both files lay; of a folder elsewhere no more than its name."""
    page = write_results(made, tmp_path / "made-elsewhere").read_text(encoding="utf-8")
    check = "--cell 1 --check made-elsewhere/results.sqlite"
    assert f"fedadapt study my/made.toml --set 'data.source.path=data/my images.npz' {check}\n" in page
    monkeypatch.chdir(tmp_path)
    page = write_results(made, Path("docs/made")).read_text(encoding="utf-8")
    assert "--check docs/made/results.sqlite\nfedadapt results docs/made/results.sqlite docs/made\n" in page
    assert "3 seeds, with `data.source.path=data/my images.npz`. Run on" in page
    assert str(tmp_path) not in page


def test_every_figure_has_both_themes_and_its_numbers(made, tmp_path):
    """A figure is two well-formed SVG files and a table, named on the page, and the same bytes when it is drawn again."""
    out = tmp_path / "out"
    page = write_results(made, out).read_text(encoding="utf-8")
    names = ["accuracy-by-bytes", "pareto", "difference", "along-skew", "cost"]
    first = {}
    for name in names:
        for theme in ("light", "dark"):
            path = out / f"{name}-{theme}.svg"
            assert ET.fromstring(path.read_text(encoding="utf-8")).tag.endswith("svg")  # noqa: S314 - our own
            assert path.name in page
            first[path] = path.read_bytes()
        with (out / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert len(rows) > 1
        assert len({len(row) for row in rows}) == 1
    assert {path.name for path in out.glob("*.svg")} == {path.name for path in first}
    assert first[out / "pareto-light.svg"] != first[out / "pareto-dark.svg"]
    write_results(out / "results.sqlite", out)
    assert {path: path.read_bytes() for path in first} == first
    assert (out / "README.md").read_text(encoding="utf-8") == page


def test_the_front_leaves_out_what_is_beaten(made, tmp_path):
    """The numbers beside the front are those of the cells: bytes in MiB and accuracy in percent."""
    write_results(made, tmp_path / "out")
    with (tmp_path / "out" / "pareto.csv").open(encoding="utf-8") as file:
        rows = {(row["skew"], row["trainable"]): row for row in csv.DictReader(file)}
    assert float(rows["iid", "small"]["MiB"]) == pytest.approx(400 / 2**20)
    assert float(rows["iid", "small"]["accuracy, %"]) == pytest.approx(81)


def test_one_axis_at_a_time_is_a_figure_each(tmp_path):
    """Each axis has its own table and figure, against its first value with the others at theirs."""
    with Results.write(tmp_path / "made") as results:
        standing = []
        for number, (value, skew) in enumerate(
            [("full", "iid"), ("small", "iid"), ("full", "strong")], start=1
        ):
            told = record(FULL if value == "full" else SMALL, 1000)
            results.keep(CellResult(f"c{number}", Status.DONE, {}, record=told, accuracy=told.accuracy))
            labels = {"trainable": value, "skew": skew, "seed": "0"}
            standing.append(PlaceResult("grid", number, labels, f"c{number}"))
        results.describe(document(design="one at a time"), standing)
    page = write_results(tmp_path / "made" / "results.sqlite", tmp_path / "out").read_text(encoding="utf-8")
    assert "| small | 79.00 | -1.00 | – | 3.91 KiB | 8.0 s |" in page
    assert "| strong | 80.00 | +0.00 | – | 3.91 KiB | 8.0 s |" in page
    assert {path.name for path in (tmp_path / "out").glob("*.svg")} == {
        f"axis-{axis}-{theme}.svg" for axis in ("trainable", "skew") for theme in ("light", "dark")
    }


ZIPPED = [["trainable", "skew"]]


def test_what_is_zipped_with_the_compared_axis_is_no_row(made, tmp_path):
    """Values that go together are compared with each other; the axis that goes along tells no rows apart."""
    study = read_study(made)
    pairs = {"full": "iid", "small": "strong"}
    places = [
        p for p in study.places if p.stage == "grid" and pairs.get(p.labels["trainable"]) == p.labels["skew"]
    ]
    tied = {**study.document, "zip": ZIPPED, "report": {**study.document["report"], "along": []}}
    with Results.write(made.parent) as results:
        results.describe(tied, places)
    page = write_results(made, tmp_path / "out").read_text(encoding="utf-8")
    assert "| small | 81.00 ± 2.00 | +0.00 ± 1.00 | 1 | 400 B | 10 % | 3 |" in page
    with Results.write(made.parent) as results:
        results.describe({**tied, "design": "one at a time"}, places)
    page = write_results(made, tmp_path / "single").read_text(encoding="utf-8")
    assert "| strong | 81.00 ± 2.00 | +0.00 ± 1.00 | 1 |" in page


def test_an_axis_without_a_place_yet_is_left_out(made, tmp_path):
    """While the searches of what others are varied around go on, the page has what is there, and no table without a row."""
    study = read_study(made)
    with Results.write(made.parent) as results:
        places = [p for p in study.grid if (p.labels["trainable"], p.labels["skew"]) == ("small", "iid")]
        results.describe(study.document | {"design": "one at a time"}, places)
    page = write_results(made, tmp_path / "out").read_text(encoding="utf-8")
    assert "| small | 81.00 ± 2.00 | – | – |" in page
    assert "## Skew" not in page


def test_results_without_a_finished_cell_are_refused(tmp_path):
    """A study of which nothing is done yet has nothing to report, and says so."""
    with Results.write(tmp_path) as results:
        results.describe(document(), [])
    with pytest.raises(RunError, match="no finished cell to report"):
        read_study(tmp_path / "results.sqlite")
    with pytest.raises(RunError, match="there are no results in"):
        read_study(tmp_path / "other.sqlite")

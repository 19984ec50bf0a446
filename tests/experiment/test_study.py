"""A study runs each cell once, side by side, and whatever happens to one, the others and its own rounds stay."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from study_files import SEARCH, STUDY, write_study
from tiny import outcome, start, tiny

from fedadapt.errors import ConfigError, Interrupted, NoDevice, RunError, RunInUse
from fedadapt.experiment import run
from fedadapt.experiment.run import Watcher
from fedadapt.experiment.study import Spectator, conduct, load_study
from fedadapt.experiment.study.compare import compare
from fedadapt.experiment.study.conduct import CELLS, foresee, share_out
from fedadapt.experiment.study.grid import Stage, digest, make_plan, places
from fedadapt.experiment.study.machine import GIBIBYTE, Need, Room, available_bytes
from fedadapt.experiment.study.workers import STOPPED, Ended, Workers, run_cell
from fedadapt.report.gather import summarise
from fedadapt.runs.records import Direction
from fedadapt.runs.results import RESULTS, AccuracyOf, CellResult, Results, Status, read_record
from fedadapt.runs.store import FILE, RunStore
from fedadapt.training.processor import cores

MIXED = """
recipe = "tiny.toml"
seeds = [0]

[axes.trainable]
parallel = { adapter = "parallel", rounds = 2 }
wild = { adapter = "full", train.lr = 1e30, train.batch_size = 4 }
"""


class Noting(Spectator):
    """Notes which cells were started."""

    def __init__(self):
        self.cells = []

    def started(self, cell):
        """A cell is being run."""
        self.cells.append(cell.title)


def cell_of(*settings):
    """The tiny run under the name that a study gives it."""
    config = tiny(*settings)
    return config.model_copy(update={"name": digest(config)})


def test_each_cell_is_run_once_and_failures_are_results(tmp_path):
    """What diverges has its reason beside what works; what has a result is left alone, what is added is run."""
    path = write_study(tmp_path, MIXED)
    given = ["train.momentum=0.9"]
    file, plan, found = conduct(load_study(path, given), tmp_path / "runs", jobs=1)
    works, wild = (found[plan.cells[number].digest] for number in (1, 2))
    assert (works.status, wild.status) == (Status.DONE, Status.FAILED)
    assert "no client could do its work in the first round: 4 " in wild.reason
    undisturbed = run(plan.cells[1].config, tmp_path / "alone")
    assert outcome(tmp_path / "runs" / CELLS / works.digest) == outcome(undisturbed)
    with Results.read(file) as results:
        kept, standing = results.cells(), results.places()
        assert results.study["axes"]["trainable"].keys() == {"parallel", "wild"}
        assert results.study["given"] == given
    assert kept == found
    assert [place.labels["trainable"] for place in standing] == ["parallel", "wild"]
    assert works.record.num_bytes(Direction.UPLOAD) == sum(
        entry.num_bytes for entry in outcome(undisturbed)["ledger"] if entry.direction is Direction.UPLOAD
    )
    path.write_text(path.read_text().replace("seeds = [0]", "seeds = [0, 1]").replace("wild =", "mild ="))
    noted = Noting()
    conduct(
        load_study(path, given),
        tmp_path / "runs",
        wanted=places(load_study(path, given))[:3],
        spectator=noted,
    )
    assert noted.cells == ["trainable=parallel seed=1"]


class _Stopping(Watcher):
    """Asks a run to stop after its first round."""

    def committed(self, record):
        """Round by round."""
        raise Interrupted


@pytest.mark.parametrize(
    ("settings", "status", "reason"),
    [
        (("train.lr=1e30", "train.batch_size=4", "adapter=full"), Status.FAILED, "no client could do its work in the first round: 4 "),
        (("codec.error_feedback=true",), Status.FAILED, "loses nothing"),
        (("data.num_clients=100000",), Status.FAILED, "100000"),
        (("data.source.name=npz", "data.source.size=8", "data.source.path=none.npz"), Status.BROKEN, "none.npz"),
        (("train.device=cuda:99",), Status.BROKEN, "GPUs are usable here"),
    ],
)  # fmt: skip
def test_what_would_end_so_again_is_told_from_what_the_machine_did(tmp_path, settings, status, reason):
    """Divergence and impossible settings are results; a missing file is to be tried again."""
    ended, told = run_cell(cell_of(*settings), tmp_path, Watcher())
    assert ended == status
    assert reason in told
    assert "\n" not in told
    assert run_cell(cell_of(*settings), tmp_path, Watcher()) == (ended, told)


def test_a_cell_goes_on_after_the_round_it_was_stopped_in(tmp_path):
    """A stopped cell is not done; run again it ends as one that was never stopped."""
    config = cell_of("rounds=3")
    assert run_cell(config, tmp_path, _Stopping()) == (STOPPED, "")
    with RunStore.read(tmp_path / config.name) as store:
        assert store.last_round == 1
    assert run_cell(config, tmp_path, Watcher()) == (Status.DONE, "")
    assert outcome(tmp_path / config.name) == outcome(run(config, tmp_path / "alone"))


def test_a_cell_begun_with_another_default_is_not_gone_on_with(tmp_path):
    """A run directory of the same name but of other settings is refused, not taken for the cell's."""
    config = cell_of("rounds=2")
    run(config.model_copy(update={"seed": 5}), tmp_path)
    ended, reason = run_cell(config, tmp_path, Watcher())
    assert ended == Status.BROKEN
    assert "--overwrite" in reason


def test_overwrite_clears_a_search_that_cannot_be_gone_on_with(tmp_path):
    """The search of a cell that was begun with other defaults is begun anew where the error said so."""
    study = load_study(write_study(tmp_path, MIXED.partition("wild")[0] + SEARCH))
    cell = make_plan(study, places(study), {}).searches[0]
    run(cell.config.model_copy(update={"seed": 7}), tmp_path / "runs" / CELLS)
    with pytest.raises(RunError, match="add --overwrite"):
        conduct(study, tmp_path / "runs", jobs=1)
    _, plan, found = conduct(study, tmp_path / "runs", jobs=1, overwrite=True)
    assert {found[cell.digest].status for cell in (*plan.searches, *plan.cells.values())} == {Status.DONE}


def test_a_damaged_run_spoils_its_cell_only(tmp_path):
    """A file that cannot be read is that cell's trouble, and is tried again; so is one that is not all there."""
    study = load_study(write_study(tmp_path, MIXED.replace("wild", "other").replace("train.lr = 1e30, ", "")))
    cells = list(make_plan(study, places(study), {}).cells.values())
    for cell, broken in zip(cells, ("damaged", "short"), strict=True):
        path = run(cell.config, tmp_path / "runs" / CELLS) / FILE
        if broken == "damaged":
            path.write_bytes(path.read_bytes()[:5000])
        else:
            RunStore.remove(path.parent)
            run(cell.config.model_copy(update={"rounds": 1}), tmp_path / "runs" / CELLS)
    ended = []

    class Telling(Spectator):
        def ended(self, cell, result):
            ended.append(result)

    with pytest.raises(RunError, match="2 cells could not be run"):
        conduct(study, tmp_path / "runs", jobs=1, spectator=Telling())
    assert {result.status for result in ended} == {Status.BROKEN}
    assert all("\n" not in result.reason for result in ended)
    _, plan, found = conduct(study, tmp_path / "runs", jobs=1, overwrite=True)
    assert {found[cell.digest].status for cell in plan.cells.values()} == {Status.DONE}


def test_overwrite_leaves_a_cell_alone_that_another_process_runs(tmp_path):
    """It has the lock of the cell's directory, and what it commits is worth something."""
    study = load_study(write_study(tmp_path, MIXED.partition("wild")[0]))
    (cell,) = make_plan(study, places(study), {}).cells.values()
    path = run(cell.config, tmp_path / "runs" / CELLS)
    with RunStore.open(path), pytest.raises(RunInUse):
        conduct(study, tmp_path / "runs", jobs=1, overwrite=True)
    assert (path / FILE).exists()


def test_a_search_that_found_nothing_is_said(tmp_path):
    """Cells whose search had no run that worked are not run, and the first reason is told."""
    wild = MIXED.replace('wild = { adapter = "full", train.lr = 1e30,', 'wild = { adapter = "full",')
    study = load_study(write_study(tmp_path, wild + SEARCH.replace("[0.01, 0.1]", "[1e30]")), [])
    for overwrite in (False, True):
        started = Noting()
        with pytest.raises(RunError, match=r"cells have no rate.*no client could do its work.*--overwrite"):
            conduct(study, tmp_path / "runs", jobs=1, overwrite=overwrite, spectator=started)
        assert started.cells
    with Results.read(tmp_path / "runs" / "grid" / RESULTS) as results:
        assert {place.labels["trainable"] for place in results.places() if place.stage == "grid"} == {
            "parallel",
            "wild",
        }


def test_a_study_for_a_gpu_is_refused_where_there_is_none(tmp_path, monkeypatch):
    """Before any cell is begun; what it would be can be looked at, and what is done needs none any more."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path = write_study(tmp_path, MIXED.partition("wild")[0])
    study = load_study(path, ["train.device=cuda"])
    with pytest.raises(
        NoDevice, match=r"grid.toml, cell trainable=parallel seed=0: train.device is 'cuda', but 0 GPUs"
    ):
        conduct(study, tmp_path / "runs", jobs=1)
    assert not (tmp_path / "runs" / CELLS).exists()
    (cell,) = foresee(study, tmp_path / "runs", places(study), {})[0].cells.values()
    done = run(load_study(path).configure({"trainable": "parallel", "seed": "0"}, {"seed": 0}), tmp_path)
    with Results.write(tmp_path / "runs" / "grid") as results:
        config = cell.config.model_dump(mode="json")
        results.keep(CellResult(cell.digest, Status.DONE, config, record=read_record(done)))
    assert conduct(study, tmp_path / "runs", jobs=1)[2][cell.digest].status is Status.DONE
    with pytest.raises(ConfigError, match="cells are given to GPUs by the study itself, use 'cuda'"):
        conduct(load_study(path, ["train.device=cuda:1"]), tmp_path / "runs", jobs=1)


def test_a_run_and_a_study_of_one_name_leave_each_other_alone(tmp_path):
    """Their files lie side by side, and --overwrite is of one's own."""
    config = tiny("rounds=1", "name=both")
    with Results.write(tmp_path / "both") as results:
        results.keep(CellResult("a", Status.FAILED, {"seed": 1}, "diverged"))
    path = run(config, tmp_path)
    run(config, tmp_path, overwrite=True)
    with Results.read(path / RESULTS) as results:
        assert results.cells()["a"].reason == "diverged"


def test_a_dead_process_spoils_its_cell_only(tmp_path):
    """A process that is killed ends its cell with a reason, and the next cell gets a new process."""
    study = load_study(write_study(tmp_path, STUDY.replace("rounds = 2", "rounds = 5000")))
    first, second = list(make_plan(study, places(study), {}).cells.values())[:2]
    with Workers(tmp_path / "runs", 1, Room([])) as workers:
        assert workers.begin(first)
        os.kill(workers._workers[0].process.pid, signal.SIGKILL)
        (ended,) = [event for event in workers.events(60) if isinstance(event, Ended)]
        assert (ended.cell, ended.status) == (first, Status.BROKEN)
        assert "SIGKILL" in ended.reason
        assert workers.begin(second)
        assert workers.running == [second]


def test_ctrl_c_stops_after_the_round_and_says_how_to_go_on(tmp_path):
    """On SIGINT a study ends with code 130 and whole rounds; the same command ends where one ends undisturbed."""
    text = STUDY.replace("seeds = [0, 1]", "seeds = [0]").replace(
        "rounds = 2", "rounds = 15, evaluate.every = 15"
    )
    path = write_study(tmp_path, text.replace("skewed =", "# skewed ="))
    arguments = ("study", path, "--runs", tmp_path / "runs", "--jobs", 1)
    process = start(*arguments)
    first, second = (
        cell.digest for cell in make_plan(load_study(path), places(load_study(path)), {}).cells.values()
    )
    store = tmp_path / "runs" / CELLS / first / FILE
    while process.poll() is None and not store.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors == f"fedadapt: stopped with 2 cells left; go on with: fedadapt study {path}\n"
    with RunStore.read(store.parent) as begun:
        assert begun.last_round < 15
    assert not (tmp_path / "runs" / CELLS / second).exists()
    again = start(*arguments)
    out, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "grid 2: trainable=head distribution=iid seed=0  done" in out
    plan = make_plan(load_study(path), places(load_study(path)), {})
    for cell in plan.cells.values():
        alone = run(cell.config, tmp_path / "alone")
        assert outcome(tmp_path / "runs" / CELLS / cell.digest) == outcome(alone)


class Dying(Spectator):
    """The process dies with the first cell of the grid that is done."""

    def ended(self, cell, result):
        """A cell has a result."""
        if cell.stage is Stage.GRID:
            raise MemoryError


def test_a_study_that_died_shows_what_was_done(tmp_path):
    """Cells that a search has given a place are found by whoever reads the results, before the study is at its end."""
    study = load_study(write_study(tmp_path, STUDY + SEARCH))
    with pytest.raises(MemoryError):
        conduct(study, tmp_path / "runs", jobs=1, spectator=Dying())
    with Results.read(tmp_path / "runs" / "grid" / RESULTS) as results:
        cells, standing = results.cells(), results.places()
    done = [place for place in standing if place.stage == "grid" and place.digest in cells]
    assert [place.number for place in done] == [1]
    assert cells[done[0].digest].accuracy is not None


def test_two_studies_do_not_write_the_same_results(tmp_path):
    """While one process does a study, a second one is refused."""
    with Results.write(tmp_path / "grid"), pytest.raises(RunError, match="in use by process"):
        conduct(load_study(write_study(tmp_path)), tmp_path)


def test_results_survive_the_way_to_disk(tmp_path):
    """What a run wrote down is read back from a results file as from the run; damage is an error in one line."""
    with Results.write(tmp_path) as results:
        results.keep(CellResult("a", Status.FAILED, {"seed": 1}, "diverged"))
        results.keep(CellResult("a", Status.DONE, {"seed": 1}))
        assert results.cells()["a"].status is Status.DONE
        results._write(("UPDATE cells SET record = ?", [(b"no record",)]))
        with pytest.raises(RunError, match="are damaged"):
            results.cells()
    (tmp_path / RESULTS).write_bytes(b"")
    with Results.write(tmp_path) as results:
        assert results.cells() == {}
    (tmp_path / "other.sqlite").write_bytes(b"something else, long enough to be looked at" * 40)
    with pytest.raises(RunError, match="cannot read results"):
        Results.read(tmp_path / "other.sqlite")


def test_what_clients_keep_is_judged_by_their_own_models(tmp_path):
    """A study and its results file tell the accuracy that reports tell, whatever an earlier version wrote beside a record."""
    kept = '{ head = "kept", data.local_test_fraction = 0.2 }'
    path = write_study(
        tmp_path, MIXED.replace('{ adapter = "parallel", rounds = 2 }', kept).partition("wild")[0]
    )
    file, plan, found = conduct(load_study(path), tmp_path / "runs", jobs=1)
    result = found[plan.cells[1].digest]
    told = summarise(tmp_path / "runs" / CELLS / result.digest)
    assert told.accuracy_of is AccuracyOf.OWN
    assert result.accuracy == told.accuracy != told.metrics["accuracy"][told.rounds]
    with Results.write(file.parent) as results:
        results.keep(replace(result, accuracy=told.metrics["accuracy"][told.rounds]))
        assert results.cells()[result.digest] == result


def test_cells_are_compared_by_bytes_and_accuracy(tmp_path):
    """A rerun agrees within half a point and the same bytes, and with nothing if nothing is written down."""
    study = load_study(write_study(tmp_path))
    plan = make_plan(study, places(study)[:1], {})
    name = plan.cells[1].digest
    here = {name: CellResult(name, Status.DONE, {}, accuracy=0.5)}
    for accuracy, agrees in ((0.5, True), (0.504, True), (0.51, False)):
        there = {name: CellResult(name, Status.DONE, {}, accuracy=accuracy)}
        assert compare(plan, here, there)[0].agrees is agrees
    assert not compare(plan, here, {})[0].agrees


def test_room_is_what_was_measured():
    """A first process always starts; a second one if memory is there for what the first took, on the GPU with least."""
    room = Room([])
    assert room.fits([]) == 0
    room.measured(Need(available_bytes() * 2))
    assert room.fits([]) == 0
    assert room.fits([(os.getpid(), 0)]) is None
    gpus = Room([80 * GIBIBYTE, 80 * GIBIBYTE])
    gpus.measured(Need(1, 20 * GIBIBYTE))
    assert gpus.fits([(0, 0)]) == 1
    assert gpus.fits([(0, 0), (0, 1)]) == 0
    assert gpus.fits([(0, gpu) for gpu in (0, 0, 0, 1, 1, 1)]) is None


def test_threads_are_divided(monkeypatch):
    """Cores are shared out among the cells side by side, within what OMP_NUM_THREADS allows."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share_out(None, 1) == (1, cores())
    assert share_out(10**6, 10**6)[1] == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert share_out(1, 5) == (1, 1)

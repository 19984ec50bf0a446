"""A study file becomes the cells it means, each known by what it is, or is refused in one line."""

from __future__ import annotations

import pytest
from study_files import SEARCH, STUDY, write_study

from fedadapt.errors import ConfigError
from fedadapt.experiment.config import make_config
from fedadapt.experiment.study.conduct import choose
from fedadapt.experiment.study.file import load_study
from fedadapt.experiment.study.grid import check, digest, make_plan, places
from fedadapt.runs.results import CellResult, Status


@pytest.fixture
def study(tmp_path):
    """Makes a study of a text."""

    def make(text=STUDY, settings=()):
        return load_study(write_study(tmp_path, text), settings)

    return make


def labels(study):
    """The values of every place, in the order of the grid."""
    return ["/".join(place.labels.values()) for place in places(study)]


def test_a_product_has_every_combination_seeds_outermost(study):
    """Two axes of two values and two seeds are eight cells, and more seeds leave the numbers of the first ones."""
    grid = labels(study())
    assert grid[:4] == ["parallel/iid/0", "parallel/skewed/0", "head/iid/0", "head/skewed/0"]
    assert len(grid) == 8
    assert labels(study(STUDY.replace("[0, 1]", "[0, 1, 2]")))[:8] == grid


def test_one_at_a_time_varies_each_axis_alone(study):
    """The first cell has the first value of every axis; each other differs from it in one axis."""
    text = 'design = "one at a time"\n' + STUDY.replace("[0, 1]", "[0]")
    assert labels(study(text)) == ["parallel/iid/0", "head/iid/0", "parallel/skewed/0"]


def test_zipped_axes_go_together(study):
    """Zipped axes give the first values together, then the second ones."""
    text = 'zip = [["trainable", "distribution"]]\n' + STUDY
    assert labels(study(text))[:2] == ["parallel/iid/0", "head/skewed/0"]
    assert len(labels(study(text))) == 4


def test_include_and_exclude_pick_cells(study):
    """A pattern has one value or several for an axis, seeds among them."""
    text = (
        'include = [{ trainable = "head" }, { seed = 1 }]\nexclude = [{ distribution = ["iid"], seed = 0 }]\n'
    )
    assert labels(study(text + STUDY)) == [
        "head/skewed/0", "parallel/iid/1", "parallel/skewed/1", "head/iid/1", "head/skewed/1",
    ]  # fmt: skip


def test_settings_reach_the_run(study):
    """A cell is the recipe, the study's settings, those of its values and its seed, one on top of the other."""
    made = study(settings=["train.lr=0.5"])
    plan = make_plan(made, places(made), {})
    config = plan.cells[8].config
    assert (config.rounds, config.adapter.name, config.seed, config.train.lr) == (2, "head", 1, 0.5)
    assert config.data.partition.model_dump() == {"name": "dirichlet", "alpha": 0.5}
    assert config.backbone.model_dump() == {"name": "resnet20", "width": 0.25}


def test_options_without_a_name_change_those_that_are_there(study):
    """A table without a name sets options of what the recipe named; one with a name replaces it."""
    text = STUDY.replace('head = { adapter = "head" }', "head = { backbone.width = 0.5 }")
    made = study(text)
    assert make_plan(made, places(made), {}).cells[3].config.backbone.model_dump() == {
        "name": "resnet20",
        "width": 0.5,
    }


def test_an_empty_table_changes_nothing(study):
    """Not the section that it is for, and not a choice."""
    first = study(STUDY)
    made = study(STUDY.replace('head = { adapter = "head" }', "head = { data = {}, backbone = {} }"))
    config = make_plan(made, places(made), {}).cells[3].config
    before = make_plan(first, places(first), {}).cells[3].config
    assert (config.data, config.backbone) == (before.data, before.backbone)


def test_an_axis_leaves_the_values_of_the_one_before_as_they_are(study):
    """Options that a later axis sets on an earlier axis's choice are those of its own cells, not of all that follow."""
    text = STUDY.replace('{ adapter = "parallel" }', '{ adapter = { name = "low_rank", rank = 8 } }')
    made = study(text.replace("{ data.partition = { name", "{ adapter.rank = 2, data.partition = { name"))
    told = made.config.model_dump()
    configs = [cell.config for cell in make_plan(made, places(made)[:2], {}).cells.values()]
    assert [config.adapter.rank for config in configs] == [8, 2]
    assert make_plan(made, places(made)[:1], {}).cells[1].config.adapter.rank == 8
    assert made.config.model_dump() == told


def test_the_digest_is_of_what_is_run():
    """Names and defaults written out do not change a digest; any other value does, and so it is a fixed one."""
    plain = make_config({"name": "a"})
    assert digest(plain) == digest(
        make_config({"name": "b", "rounds": plain.rounds, "train": {"momentum": 0.9}})
    )
    assert digest(plain) != digest(make_config({"name": "a", "train": {"momentum": 0.8}}))
    # BLAKE2b of "{}": a run of defaults alone; were it another, finished cells would be done again.
    assert digest(plain) == "9327a492264e"


def finished(cells, accuracies, status=Status.DONE):
    """Results of these accuracies, as far as they go."""
    return {
        cell.digest: CellResult(cell.digest, status, {}, accuracy=accuracy)
        for cell, accuracy in zip(cells, accuracies, strict=False)
    }


def test_the_search_decides_before_the_grid(study):
    """Every trainable set gets the value that was best for it; until then its cells wait."""
    made = study(STUDY + SEARCH)
    grid = places(made)
    plan = make_plan(made, grid, {})
    assert (len(plan.cells), len(plan.searches), len(plan.waiting)) == (0, 4, 8)
    assert [cell.labels["train.lr"] for cell in plan.needed({})] == ["0.01", "0.1"] * 2
    assert all(cell.config.data.validation_fraction == 0.2 for cell in plan.searches)
    results = finished(plan.searches[:2], [0.3, 0.4])
    half = make_plan(made, grid, results)
    assert (len(half.cells), len(half.waiting)) == (4, 4)
    assert {cell.config.train.lr for cell in half.cells.values()} == {0.1}
    results |= finished(plan.searches[2:], [0.6, 0.5])
    whole = make_plan(made, grid, results)
    assert {cell.config.train.lr for cell in whole.cells.values() if cell.labels["trainable"] == "head"} == {
        0.01
    }


def test_a_search_runs_where_it_is_told(study):
    """On IID clients unless ``at`` names others; a set that the grid has not there is searched where it is."""
    apart = 'exclude = [{ trainable = "head", distribution = "skewed" }]\n' + STUDY + SEARCH
    for text, where in (
        (apart, ["iid", "iid"]),
        (apart + 'at = { distribution = "skewed" }', ["dirichlet", "iid"]),
    ):
        made = study(text)
        searches = make_plan(made, places(made), {}).searches
        assert [cell.config.data.partition.name for cell in searches[::2]] == where


def test_a_failed_value_loses_and_a_broken_one_is_waited_for(study):
    """A value with which training diverged is not picked; one that the machine spoilt leaves the choice open."""
    made = study(STUDY + SEARCH)
    first, second = make_plan(made, places(made), {}).searches[:2]
    diverged = finished([first], [0.9], Status.FAILED) | finished([second], [0.2])
    assert {c.config.train.lr for c in make_plan(made, places(made), diverged).cells.values()} == {0.1}
    broken = finished([first], [None], Status.BROKEN) | finished([second], [0.2])
    assert not make_plan(made, places(made), broken).cells


def test_where_no_value_worked_none_is_taken(study):
    """A search of which all runs failed has found nothing, and its cells are not run at a rate that nobody chose."""
    made = study(STUDY + SEARCH)
    searches = make_plan(made, places(made), {}).searches
    failed = finished(searches[:2], [0.9, 0.1], Status.FAILED) | finished(searches[2:], [0.6, 0.5])
    plan = make_plan(made, places(made), failed)
    lost = searches[0].labels["trainable"]
    assert {cell.labels["trainable"] for cell in plan.waiting} == {lost}
    assert plan.lost == {cell.number for cell in plan.waiting}
    assert not make_plan(made, places(made), finished(searches[:1], [0.9], Status.FAILED)).lost
    assert lost not in {cell.labels["trainable"] for cell in plan.cells.values()}
    assert [one for one in searches if one.is_for(plan.waiting[0])] == list(searches[:2])


def test_cells_are_chosen_by_number_or_value(study):
    """Numbers and values of axes pick places; both together pick what both do."""
    made = study()
    assert [place.number for place in choose(made, [3, 4])] == [3, 4]
    assert [place.number for place in choose(made, [], [{"trainable": "head"}, {"seed": "1"}])] == [7, 8]
    assert [place.number for place in choose(made, [3], [{"distribution": "iid"}])] == [3]


def looked_at(study, text):
    """A study as a command looks at it before it runs anything."""
    made = study(text)
    check(made, places(made))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("colour = 3", "unknown key 'colour'"),
        ("seeds = []", "key 'seeds' is []"),
        ('zip = [["trainable", "shape"]]', "zip names 'shape', which is not there; known: trainable, distribution"),
        ('exclude = [{ trainable = "haed" }]', "names 'haed', which is not there; did you mean 'head'?"),
        ("exclude = [{ seed = [0, 1] }]", "has no cell; include and exclude leave none"),
        ('report = { compare = "trainabel" }', "did you mean 'trainable'?"),
        ('report = { reference = "all" }', "report.reference names 'all'"),
        ('report = { along = ["trainable"] }', "report.along names 'trainable', whose values are compared"),
        ('zip = [["trainable", "distribution"]]\nreport = { along = ["distribution"] }', "report.along names 'distribution'"),
        ('search = { values = [0.1], par = ["trainable"] }', "unknown key 'search.par'; did you mean 'per'?"),
        ('search = { key = "train.rate", values = [0.1] }', "unknown key 'train.rate'"),
        ("search = { values = [0.1], settings = { rounds = 1 } }", "the search measures on the test set"),
    ],
)  # fmt: skip
def test_a_bad_study_is_refused_in_one_line(study, change, says):
    """What is not there, cannot be or leaves nothing is named, before anything runs."""
    text = STUDY.replace("seeds = [0, 1]\n", "") if change.startswith("seeds") else STUDY
    with pytest.raises(ConfigError) as error:
        looked_at(study, f"{change}\n{text}")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"parallel" }', '"paralel" }', "cell trainable=parallel distribution=iid seed=0: unknown adapter 'paralel'"),
        ("alpha = 0.5", "alfa = 0.5", "cell trainable=parallel distribution=skewed seed=0"),
        ("rounds = 2", "rounds = 0", "key 'rounds' is 0"),
        ("rounds = 2", "rounds.more = 2", "settings: 'rounds' is a value, not a section"),
        ("tiny.toml", "tidy.toml", "cannot read the recipe of study"),
    ],
)  # fmt: skip
def test_a_study_of_runs_that_cannot_be_is_refused(study, before, after, says):
    """A name, an option or a value that no run may have is found in the cell that has it, before anything runs."""
    with pytest.raises(ConfigError) as error:
        looked_at(study, STUDY.replace(before, after))
    assert says in str(error.value)

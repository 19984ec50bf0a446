"""Every metric finds its cell, and the accuracy of a run is said to be of whose model it is."""

from __future__ import annotations

import pytest

from fedadapt.report.gather import summarise
from fedadapt.report.measures import drift_columns, measure_columns
from fedadapt.report.page import render
from fedadapt.report.tables import compare_columns, compare_note
from fedadapt.runs.records import RoundRecord
from fedadapt.runs.results import AccuracyOf, read_record
from fedadapt.runs.store import RunStore

SHARED = [{"group": "adapter", "trained": True, "travels": "shared", "values": 10, "bytes": 40}]
KEPT = [*SHARED, {"group": "norm_affine", "trained": True, "travels": "kept", "values": 5, "bytes": 0}]
OWN = {
    "client_accuracy_mean": 0.9,
    "client_accuracy_worst": 0.7,
    "client_accuracy_std": 0.05,
    "client_accuracy_iqr": 0.08,
}
GLOBAL = {"accuracy": 0.8, "loss": 0.5, "macro_f1": 0.75, "delta_norm": 2.0, "delta_cosine": 0.25}


@pytest.fixture
def measured(tmp_path):
    """A run of one round with these metrics and this plan."""

    def make(metrics, plan, test=100):
        manifest = {"config": {"name": "one"}, "plan": plan, "data": {"test": test}}
        with RunStore.create(tmp_path / "run", manifest) as store:
            store.commit(RoundRecord(0, {"model": {}}, metrics=metrics))
        return summarise(tmp_path / "run")

    return make


@pytest.mark.parametrize(
    ("metrics", "plan", "test", "whose", "accuracy"),
    [
        (GLOBAL, SHARED, 9, AccuracyOf.GLOBAL, 0.8),
        (GLOBAL | OWN, SHARED, 9, AccuracyOf.GLOBAL, 0.8),
        (GLOBAL | OWN, KEPT, 9, AccuracyOf.OWN, 0.9),
        (GLOBAL, KEPT, 9, AccuracyOf.PART, 0.8),
        (OWN, SHARED, 0, AccuracyOf.AT_CLIENTS, 0.9),
        (OWN, KEPT, 0, AccuracyOf.OWN, 0.9),
        ({}, SHARED, 0, AccuracyOf.GLOBAL, None),
    ],
)
def test_accuracy_is_of_a_model_that_somebody_has(measured, metrics, plan, test, whose, accuracy):
    """Where clients keep something, it is the mean of their own, or it is named as what nobody has.

    Where there is no test set it is the mean over the clients' samples, whoever's the model.
    """
    run = measured(metrics, plan, test)
    assert (run.accuracy_of, run.accuracy) == (whose, accuracy)
    assert run.as_json()["accuracy_of"] == str(whose)
    assert read_record(run.path).accuracy == accuracy
    assert run.as_json()["metrics"] == metrics
    words = {
        AccuracyOf.OWN: "accuracy, clients&#x27; own held-out samples with their own models",
        AccuracyOf.AT_CLIENTS: "accuracy, clients&#x27; own held-out samples, in the mean",
        AccuracyOf.PART: "accuracy, global test set with the shared part alone",
        AccuracyOf.GLOBAL: "accuracy, global test set<",
    }
    page = render([run])
    assert all((text in page) == (named is whose) for named, text in words.items())


def test_a_table_of_metrics(measured):
    """A row for the global model and one for each statistic over clients; what is not measured is a dash."""
    cells = {column.title: column.cells for column in measure_columns([measured(GLOBAL | OWN, SHARED)])}
    assert cells == {
        "run": ("one",) * 5,
        "of": (
            "global model",
            "clients, mean",
            "clients, worst tenth",
            "clients, deviation",
            "clients, quartiles apart",
        ),
        "accuracy": ("80.0 %", "90.0 %", "70.0 %", "5.0 %", "8.0 %"),
        "macro F1": ("75.0 %", "–", "–", "–", "–"),
        "loss": ("0.500", "–", "–", "–", "–"),
    }


def test_a_table_of_drift(measured):
    """How long updates are, and how far they agree."""
    cells = {column.title: column.cells for column in drift_columns([measured(GLOBAL, SHARED)])}
    assert cells == {"run": ("one",), "length of updates": ("2.000",), "cosine to their mean": ("0.250",)}


def test_points_are_between_accuracies_of_the_same_kind(make_run):
    """What clients score on their own samples is not so many points above a global model on the test set."""
    kept = make_run("kept", changes={"plan": KEPT}, scale=3)
    runs = [summarise(path) for path in (make_run("shared"), kept)]
    columns = {column.title: column.cells for column in compare_columns(runs)}
    assert columns["of"] == ("global model", "shared part alone")
    assert columns["points"] == ("–", "–")
    assert "nobody's model" in compare_note(runs)
    assert "nobody's model" not in compare_note(runs[:1])


def test_the_shared_part_is_named_in_the_table(measured):
    """It is not called a global model where clients keep what it lacks."""
    (_, whose, *_) = measure_columns([measured(GLOBAL, KEPT)])
    assert whose.cells == ("shared part alone",)


@pytest.mark.parametrize("plan", [SHARED, KEPT])
def test_a_server_without_samples_has_rows_for_its_clients_alone(measured, plan):
    """All that they say of their models is there, and nothing of one that nobody measured."""
    cells = {column.title: column.cells for column in measure_columns([measured(OWN, plan, test=0)])}
    assert cells["accuracy"] == ("90.0 %", "70.0 %", "5.0 %", "8.0 %")
    assert cells["of"] == (
        "clients, mean",
        "clients, worst tenth",
        "clients, deviation",
        "clients, quartiles apart",
    )

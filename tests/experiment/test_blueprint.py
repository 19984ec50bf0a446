"""The clients made from a blueprint are those of the experiment."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import tiny

from fedadapt.engines.local import LocalEngine
from fedadapt.errors import ConfigError, RunError
from fedadapt.experiment.blueprint import draw_blueprint
from fedadapt.experiment.build import build
from fedadapt.federation.round import play


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.partition=dirichlet", "data.local_test_fraction=0.3"),
        ("data.partition=virtual", "data.partition.size=20"),
    ],
)
def test_the_clients_are_the_same(settings):
    """They answer a round with the same bytes, though the data came as columns and nothing else was read."""
    experiment = build(tiny(*settings))
    blueprint = draw_blueprint(experiment)
    document = json.loads(blueprint.document)
    # The source is not asked again: it could not be.
    document["config"]["data"]["source"] = {"name": "npz", "path": "/nowhere.npz"}
    columns = {name: np.array(column) for name, column in blueprint.columns.items()}
    for column in columns.values():
        column.flags.writeable = False
    party = blueprint.make(json.dumps(document), columns, "cpu")
    assert party.memory == {}
    requests = next(play(experiment.algorithm, experiment.wire, experiment.first_state(), 1, range(4)))
    here, there = LocalEngine(experiment.party({})), LocalEngine(party)
    assert there.exchange(requests) == here.exchange(requests)


def test_the_device_is_the_actors():
    """Where to compute is said beside the configuration, and goes before it."""
    blueprint = draw_blueprint(build(tiny("train.device=cpu")))
    with pytest.raises(ConfigError, match="'cuda:9'"):
        blueprint.make(blueprint.document, blueprint.columns, "cuda:9")


def test_clients_that_would_hold_something_else_are_refused():
    """Where other versions deal the samples otherwise, the party is not made."""
    blueprint = draw_blueprint(build(tiny()))
    with pytest.raises(RunError, match=r"what clients hold .* use the same versions"):
        blueprint.make(blueprint.document.replace('"seed": 0', '"seed": 1'), blueprint.columns, "cpu")

"""How much work a cell is, in images, known before it runs."""

from __future__ import annotations

import json
import math
from functools import cache

from fedadapt.errors import FedadaptError
from fedadapt.experiment.config import RunConfig
from fedadapt.registry import Choice

MEASURED_AS = 1 / 3
"""What measuring on an image costs of what training on it does: the forward pass alone."""


def images(config: RunConfig) -> float | None:
    """Images that a run trains on, and a third of those that it is measured on.

    Of data that cannot be read only what the configuration says is counted; None if it says nothing.

    Trainable sets differ in the work an image is; the estimate takes them all alike.
    """
    sizes = _sizes(config.data.source.model_dump_json())
    if sizes is None and config.data.limit is None:
        return None
    train, test = sizes or (config.data.limit or 0, 0)
    measured = round(train * config.data.validation_fraction) if config.data.validation_fraction else test
    train -= measured if config.data.validation_fraction else 0
    train = min(train, config.data.limit or train)
    measured = min(measured, config.evaluate.limit or measured)
    asked = min(1.0, (config.cohort or config.data.num_clients) / config.data.num_clients)
    trained = config.rounds * train * (1 - config.data.local_test_fraction) * asked * config.train.epochs
    measurements = 1 + math.ceil(config.rounds / config.evaluate.every)
    return trained + MEASURED_AS * measurements * measured


@cache
def _sizes(source: str) -> tuple[int, int] | None:
    try:
        dataset = Choice(**json.loads(source)).create("source")
    except FedadaptError:
        return None
    return len(dataset.train), len(dataset.test)

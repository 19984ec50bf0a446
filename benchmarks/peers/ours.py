"""fedadapt: whole rounds through frames, ledger and server step, as a run plays them, without the disk."""

from __future__ import annotations

import torch
from work import CLASSES, LR, MEAN, MOMENTUM, STD, obey, parse

from fedadapt.adapters import AdaptedModel
from fedadapt.data.dataset import Dataset, Split
from fedadapt.engines.local import LocalEngine
from fedadapt.experiment.build import build
from fedadapt.experiment.config import RunConfig, make_config
from fedadapt.experiment.party_data import Clients
from fedadapt.federation import serve
from fedadapt.federation.round import play as play_round
from fedadapt.params import Params
from fedadapt.training.local import Trained
from fedadapt.training.processor import tuned_processor

work, arguments = parse()
config = make_config({
    "name": "benchmark",
    "cohort": work.cohort,
    "backbone": {"name": "resnet20", "width": work.width},
    "adapter": {"name": work.adapter},
    "data": {"num_clients": work.clients, "augment": {"pad": 0, "flip": False}},
    "train": {
        "lr": LR, "momentum": MOMENTUM, "batch_size": work.batch, "precision": arguments.precision, "device": "cpu",
    },
})  # fmt: skip


def load(_config: RunConfig) -> tuple[Dataset, Split, Clients]:
    """The pool, and who holds what of it."""
    split = Split(work.images(), work.labels())
    names = tuple(str(number) for number in range(CLASSES))
    dataset = Dataset("noise", split, split, names, None, (MEAN,) * 3, (STD,) * 3)
    return dataset, split, Clients([work.indices(client) for client in range(work.clients)], [])


def rest(_model: AdaptedModel, start: Params, *_: object, **__: object) -> Trained:
    """Instead of training, so that all the rest of a round is what there is to measure."""
    clients = len(next(iter(start.values())))
    return Trained(start, torch.ones(clients, dtype=torch.int64), torch.zeros(clients))


if not work.trains:
    serve.train = rest
experiment = build(config, load)
engine = LocalEngine(experiment.party({}))
state, number = experiment.first_state(), 0


def play() -> None:
    """One round."""
    global state, number  # noqa: PLW0603 - a script
    number += 1
    cohort = experiment.population.asked(number)
    flow = play_round(experiment.algorithm, experiment.wire, state, number, cohort)
    requests = next(flow)
    try:
        flow.send(engine.exchange(requests))
    except StopIteration as stop:
        state = stop.value.state


with tuned_processor():
    obey(play)

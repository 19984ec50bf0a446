"""fedadapt: whole rounds through frames, ledger and server step, as a run plays them, without the disk."""

from __future__ import annotations

from work import CLASSES, LR, MEAN, MOMENTUM, STD, obey, parse

from fedadapt.data.dataset import Dataset, Split
from fedadapt.engines.local import LocalEngine
from fedadapt.experiment.build import Clients, build
from fedadapt.experiment.config import RunConfig, make_config
from fedadapt.federation.round import play as play_round
from fedadapt.federation.sampling import sample_cohort

work, arguments = parse()
config = make_config({
    "name": "benchmark",
    "cohort": work.cohort,
    "backbone": {"name": "resnet20", "width": work.width},
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


experiment = build(config, load)
engine = LocalEngine(experiment.party({}))
state, number = experiment.first_state(), 0


def play() -> None:
    """One round."""
    global state, number  # noqa: PLW0603 - a script
    number += 1
    cohort = sample_cohort(work.clients, work.cohort, number, experiment.seeds)
    flow = play_round(experiment.algorithm, experiment.wire, state, number, cohort)
    requests = next(flow)
    try:
        flow.send(engine.exchange(requests))
    except StopIteration as stop:
        state = stop.value.state


obey(play)

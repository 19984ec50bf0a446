"""The law of the client axis: any number of clients together gives each what it would get alone."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from contracts.cases import MEAN, SIZES, STD, client_indices, tiny_model, tiny_split

from fedadapt.adapters import attach
from fedadapt.data.augment import Augment
from fedadapt.data.batches import cohort_batches
from fedadapt.params import expand, pick
from fedadapt.registry import create, names
from fedadapt.seeds import Seeds
from fedadapt.training.config import TrainConfig
from fedadapt.training.local import train

OPTIMISERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "epochs": 2},
    "adamw": {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1},
    "clipped": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.5, "clip_norm": 0.5, "label_smoothing": 0.1},
}


def train_clients(model, config, clients):
    """The clients trained together as one cohort: parameters, steps and loss of each."""
    indices = client_indices()
    trained = train(
        model,
        expand(model.start, len(clients)),
        cohort_batches(
            tiny_split(),
            [indices[client] for client in clients],
            clients,
            round=1,
            seeds=Seeds(0),
            batch_size=4,
            epochs=config.epochs,
            augment=Augment(pad=1, flip=True),
        ),
        config,
        lr=config.lr,
        mean=MEAN,
        std=STD,
    )
    return [
        (pick(trained.params, place), int(trained.num_steps[place]), float(trained.loss[place]))
        for place in range(len(clients))
    ]


FAMILY = {"low_rank": {"rank": 2}, "seeded": {"rank": 2}, "lora": {"rank": 2}, "grouped": {"groups": 2}}
FAMILY["bottleneck"] = {"rank": 2, "sites": {"layers": ("conv",)}}
"""Options under which an adapter is not a full matrix at the tiny network's channels."""
EVERY_WAY = list(product(OPTIMISERS, ["parallel", "norm_head", "head"], ["frozen", "local", "averaged"]))
EVERY_WAY.append(("sgd", "parallel", "pooled"))
ONE_WAY = [("clipped", name, "frozen") for name in names("adapter") if name != "full"]


@pytest.mark.parametrize(
    ("optimiser", "adapter", "norms"), [*EVERY_WAY, *sorted(set(ONE_WAY) - set(EVERY_WAY))]
)
def test_any_number_of_clients_gives_each_what_it_gets_alone(optimiser, adapter, norms):
    """Ragged clients in cohorts of 2, 7 and 16 end where K = 1 ends, in weights, statistics, steps and loss."""
    model = tiny_model(adapter, norms, **FAMILY.get(adapter, {}))
    config = TrainConfig(device="cpu", batch_size=4, **OPTIMISERS[optimiser])
    alone = [train_clients(model, config, [client])[0] for client in range(len(SIZES))]
    assert [steps for _, steps, _ in alone] == [config.epochs * -(-size // 4) for size in SIZES]
    for together in (2, 7, 16):
        cohorts = [list(range(16))[begin : begin + together] for begin in range(0, 16, together)]
        results = [result for cohort in cohorts for result in train_clients(model, config, cohort)]
        for client, (params, steps, loss) in enumerate(results):
            expected, expected_steps, expected_loss = alone[client]
            assert steps == expected_steps
            assert loss == pytest.approx(expected_loss, rel=1e-4)
            for name, tensor in expected.items():
                largest = float(tensor.abs().max())
                moved = float((tensor - model.start[name]).abs().max())
                difference = float((params[name] - tensor).abs().max())
                assert difference <= 1e-4 * max(largest, moved) + 1e-9, (together, client, name)


@pytest.mark.parametrize("norms", ["frozen", "local", "averaged", "pooled"])
def test_every_changing_tensor_changes(norms):
    """The law is not kept by standing still: training moves all tensors that it should move."""
    model = tiny_model("parallel", norms)
    params, _, _ = train_clients(model, TrainConfig(device="cpu", batch_size=4), [7])[0]
    assert all(not torch.equal(params[name], model.start[name]) for name in model.start)


@pytest.mark.parametrize("norms", ["frozen", "local"])
def test_full_fine_tuning_holds_one_client(norms):
    """Trained backbone weights have no client axis to share, and the model says so."""
    assert tiny_model("full", norms).max_clients == 1
    assert tiny_model("parallel", norms).max_clients is None


@pytest.mark.parametrize("norms", ["local", "averaged", "pooled"])
def test_a_resting_client_stays_finite_in_a_deep_network(norms):
    """With nothing to take statistics of, a client that is out of steps normalises with its running ones."""
    generator = torch.Generator().manual_seed(0)
    backbone = create("backbone", "resnet20", {"width": 0.25})(5, generator)
    model = attach(backbone, create("adapter", "parallel"), create("norm policy", norms), generator)
    config = TrainConfig(device="cpu", batch_size=4, lr=0.01)
    alone = [train_clients(model, config, [client])[0] for client in (0, 7)]
    for (params, _, loss), (expected, _, expected_loss) in zip(
        train_clients(model, config, [0, 7]), alone, strict=True
    ):
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        for name, tensor in params.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)

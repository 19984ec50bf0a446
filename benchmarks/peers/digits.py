"""What `agreement.py` has both sides do, and one client of it as an ordinary PyTorch loop."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from peers.work import adapted
from torch import Tensor, nn
from torch.nn import functional

from fedadapt.data.augment import normalise
from fedadapt.data.batches import schedule
from fedadapt.experiment.build import Experiment, build
from fedadapt.experiment.config import RunConfig, make_config

RATES = {"full": 0.005, "parallel": 0.02}


def recipe(adapter: str, rounds: int) -> RunConfig:
    """What both sides do."""
    return make_config({
        "name": f"agreement-{adapter}",
        "rounds": rounds,
        "backbone": {"name": "resnet26"},
        "adapter": {"name": adapter},
        "data": {
            "num_clients": 10,
            "source": {"name": "digits", "size": 16},
            "partition": {"name": "dirichlet", "alpha": 0.5},
            "augment": {"pad": 0, "flip": False},
        },
        "train": {"lr": RATES[adapter], "momentum": 0.9, "batch_size": 16, "precision": "fp32", "device": "cpu"},
    })  # fmt: skip


@cache
def held(adapter: str, rounds: int) -> Experiment:
    """What a process keeps between clients: of it data, split and pretrained weights are used."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return build(recipe(adapter, rounds))


def network(experiment: Experiment) -> nn.Module:
    """The network as one writes it for one client. Its statistics rest, whatever is trained."""
    net = deepcopy(experiment.backbone.module).eval()
    return net.requires_grad_() if experiment.config.adapter.name == "full" else adapted(net)


def trained(net: nn.Module) -> dict[str, Tensor]:
    """Its trained tensors."""
    return {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}


def pixels(experiment: Experiment, images: Tensor) -> Tensor:
    """Images as the network takes them."""
    return normalise(images, experiment.mean, experiment.std, torch.float32)


def fit(experiment: Experiment, net: nn.Module, client: int, round: int) -> int:
    """One epoch of SGD, as one writes it; how many images it was."""
    train, split = experiment.config.train, experiment.dataset.train
    own = experiment.clients.train[client]
    generator = experiment.seeds.torch("batches", round=round, client=client)
    optimizer = torch.optim.SGD(
        (p for p in net.parameters() if p.requires_grad), lr=train.lr, momentum=train.momentum
    )
    for step in schedule(len(own), train.batch_size, train.epochs, generator):
        rows = own[step[step >= 0]]
        optimizer.zero_grad()
        logits = net(pixels(experiment, split.images[rows]))
        functional.cross_entropy(logits, split.labels[rows]).backward()
        optimizer.step()
    return len(own)

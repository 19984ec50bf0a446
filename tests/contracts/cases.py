"""The small world that laws are tested in: a tiny network, a few images, many ragged clients."""

from __future__ import annotations

import torch
from torch import nn

from fedadapt.adapters import attach
from fedadapt.algorithms import Setting
from fedadapt.backbones import ResNet
from fedadapt.backbones.backbone import finish
from fedadapt.backbones.resnet import initialise
from fedadapt.codecs import make_codec
from fedadapt.data.augment import Augment
from fedadapt.data.dataset import Split
from fedadapt.engines.local import LocalEngine
from fedadapt.federation.messages import Wire
from fedadapt.federation.plan import Travel, make_plan
from fedadapt.federation.round import play
from fedadapt.federation.serve import Party
from fedadapt.registry import create
from fedadapt.runs.records import Outcome
from fedadapt.seeds import Seeds
from fedadapt.training.config import TrainConfig

CLASSES = 5
SIDE = 12
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.3, 0.2)
SIZES = (1, 3, 8, 5, 9, 2, 7, 11, 1, 4, 6, 10, 2, 5, 3, 1)
"""How many samples each of 16 clients holds: ragged, and with batches of 4 from one step to three."""


def draw_norms(module, seed=0):
    """Gives every batch norm of `module` statistics and affine that change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.3, generator=generator)
                norm.running_var.uniform_(0.5, 2, generator=generator)
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(0, 0.3, generator=generator)


def tiny_backbone(seed=0, widths=(4, 4, 6, 8)):
    """A residual net of seven convolutions with non-trivial norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        module = ResNet(
            1, widths, (1, 2, 2), "subsample", stem_relu=True, end_norm=False, num_classes=CLASSES
        )
    initialise(module, generator)
    draw_norms(module, seed)
    return finish("tiny", module, "fc", CLASSES, generator, (MEAN, STD), image=(3, SIDE, SIDE))


def zoo_backbone(seed=0):
    """A plain network, of no library, with a convolution of every geometry and a batch norm behind each."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        {"in_channels": 3, "out_channels": 6, "kernel_size": 3, "padding": 1, "bias": False},
        {"in_channels": 6, "out_channels": 6, "kernel_size": 5, "padding": 2, "stride": 2, "groups": 2},
        {"in_channels": 6, "out_channels": 8, "kernel_size": 7, "padding": 3, "padding_mode": "reflect"},
        {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
        {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1, "groups": 8, "bias": False},
    ]
    layers = []
    for shape in shapes:
        layers += [nn.utils.skip_init(nn.Conv2d, **shape), nn.BatchNorm2d(shape["out_channels"]), nn.SiLU()]
    hidden, head = (nn.utils.skip_init(nn.Linear, 8, 8) for _ in range(2))
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), hidden, nn.SiLU(), head)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    draw_norms(module, seed)
    return finish("zoo", module, str(len(module) - 1), CLASSES, generator, (MEAN, STD), image=(3, SIDE, SIDE))


def tiny_model(adapter="parallel", norms="frozen", *, seed=0, **options):
    """`tiny_backbone` with an adapter and a norm policy by their names."""
    generator = torch.Generator().manual_seed(seed)
    return attach(
        tiny_backbone(seed), create("adapter", adapter, options), create("norm policy", norms), generator
    )


def jiggle(params, seed=0, scale=0.1):
    """`params` with noise on every value, and variances still positive."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + scale * torch.rand(tensor.shape, generator=generator)
        for name, tensor in params.items()
    }


def random_images(count, seed=0, side=SIDE):
    """Normalised images."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def tiny_split(count=None, seed=0):
    """Images of noise with random labels, by default as many as the clients of `SIZES` hold."""
    count = sum(SIZES) if count is None else count
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, SIDE, SIDE), generator=generator).to(torch.uint8)
    return Split(images, torch.randint(CLASSES, (count,), generator=generator))


def client_indices(sizes=SIZES):
    """Consecutive places in a split, so many for each client."""
    return list(torch.arange(sum(sizes)).split(list(sizes)))


def tiny_wire(model, codec="float32", kept=frozenset(), **options):
    """The wire of a model whose clients keep some groups."""
    plan = make_plan(model, model.kept | kept, {})
    return Wire(plan, make_codec(codec), model.digest, seeds=Seeds(3), **options)


def tiny_party(model, *, sizes=SIZES, memory=None, algorithm=None, wire=None, **train):
    """A site that simulates the clients of `sizes`, all of whom are asked."""
    algorithm = algorithm or create("algorithm", "fedavg")
    config = TrainConfig(**{"batch_size": 4, "lr": 0.05, "device": "cpu"} | train)
    wire = wire or tiny_wire(model, kept=algorithm.local.kept)
    return Party(
        model=model,
        wire=wire,
        algorithm=algorithm.settle(setting_of(wire, len(sizes), config)),
        train=config,
        rounds=5,
        split=tiny_split(max(1, sum(sizes))),
        indices=client_indices(sizes),
        augment=Augment(pad=1, flip=True),
        mean=MEAN,
        std=STD,
        seeds=Seeds(3),
        memory={} if memory is None else memory,
    )


def setting_of(wire, num_clients, config):
    """What a run with this wire tells its algorithm."""
    plan = wire.plan
    return Setting(
        num_clients,
        num_clients,
        config,
        trained=frozenset(row.group for row in plan.rows if row.trained),
        shared=frozenset(plan.groups()),
        moving=frozenset(r.name for r in plan.rows if not r.trained and r.travel is Travel.SHARED),
        statistics_move=any(not r.trained for r in plan.rows),
        lossy=wire.lossy,
        bounded=wire.norm_bound is not None,
    )


def federate(party, cohorts, *, chunk=16, first=1, state=None):
    """The server's states after rounds with these cohorts, the one before the first included."""
    states = [first_state(party) if state is None else state]
    for number, cohort in enumerate(cohorts, start=first):
        flow = play(party.algorithm, party.wire, states[-1], number, cohort)
        replies = LocalEngine(party, chunk).exchange(next(flow))
        assert [reply.failure for reply in replies] == [""] * len(cohort)
        try:
            flow.send(replies)
        except StopIteration as stop:
            counts = len(cohort) >= party.algorithm.server.least
            expected = Outcome.ACCEPTED if counts else Outcome.REFUSED
            assert {record.outcome for record in stop.value.clients} <= {expected}, stop.value.clients
            states.append(stop.value.state)
    return states


def first_state(party):
    """The server's state before the first round."""
    return party.algorithm.init({name: party.model.start[name].clone() for name in party.wire.plan.layout()})

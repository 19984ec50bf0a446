"""Where a network can be cut, and that both halves are the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contracts.cases import SIDE, jiggle, random_images, tiny_backbone, tiny_model
from torch import nn

from fedadapt.adapters import attach
from fedadapt.adapters.trunk import cut_trunk
from fedadapt.backbones.backbone import finish
from fedadapt.params import stack
from fedadapt.registry import create


def adapted(module, head, adapter="head", **options):
    """A foreign network, adapted."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    backbone = finish("foreign", module, head, 5, generator, None, image=(3, SIDE, SIDE))
    return attach(backbone, create("adapter", adapter, options), create("norm policy", "frozen"), generator)


def check_halves(model, shape):
    """Both halves together are the model, and so is what goes between them."""
    trunk, behind = cut_trunk(model)
    images = random_images(6)
    params = stack([jiggle(model.start, seed) for seed in range(2)])
    with torch.no_grad():
        between = trunk(images)
        assert between.shape == (6, *shape)
        torch.testing.assert_close(behind(params, between), model(params, images))
        for here, there in zip(
            behind.with_features(params, between), model.with_features(params, images), strict=True
        ):
            torch.testing.assert_close(here, there)
    return trunk, behind


@pytest.mark.parametrize(
    ("sites", "shape"),
    [
        ({"include": ["layer3.*"]}, (6, 6, 6)),
        # Not between the convolutions of a block: the shortcut goes around it.
        ({"include": ["layer3.0.conv2"]}, (6, 6, 6)),
        ({"include": ["layer2.*", "layer3.*"]}, (4, 12, 12)),
    ],
)
def test_it_is_cut_before_the_block_of_the_first_site(sites, shape):
    """A residual net, whose shortcuts need what the block is given."""
    trunk, behind = check_halves(tiny_model("parallel", sites=sites | {"norms": "above"}), shape)
    assert not hasattr(trunk, "layer3")
    assert not hasattr(behind.module, "layer1")


def test_a_head_alone_is_cut_off_before_the_head():
    """The features that class means are taken of."""
    _, behind = check_halves(tiny_model("head"), (8,))
    assert [name for name, _ in behind.module.named_children()] == ["fc"]


@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny_model("parallel"),
        lambda: tiny_model("full"),
        lambda: tiny_model("head", "averaged"),
        lambda: tiny_model("parallel", sites={"include": ["layer3.*"]}, norms="local"),
    ],
    ids=["stem", "full", "statistics", "statistics below"],
)
def test_nothing_is_cut_off_where_the_first_layer_changes(model):
    """There is no trunk then; the first layer alone may be left."""
    parts = cut_trunk(model())
    assert parts is None or not hasattr(parts[0], "layer1")


class Tokens(nn.Module):
    """Constants are added below and above the cut, the size of the batch is looked at, and there are options."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.place = nn.Parameter(torch.zeros(1, 9, 8))
        self.first, self.second, self.fc = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, mask=None, *, doubled=False):
        x = self.embed(x).flatten(2).mT
        if mask is not None or doubled:
            x = 2 * x
        x = self.first(x + self.place.expand(x.shape[0], -1, -1)).relu()
        x = self.second(x + self.place)
        return self.fc(x.mean(1))


def test_constants_are_had_on_both_sides():
    """A parameter that both halves look at keeps neither from being cut; arguments keep their defaults."""
    model = adapted(Tokens(), "fc", "lora", rank=2, sites={"include": ["second"], "norms": "above"})
    trunk, behind = check_halves(model, (9, 8))
    assert hasattr(trunk, "embed")
    assert hasattr(behind.module, "place")


class Branching(nn.Module):
    """Its course depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.fc(x if x.sum() > 1e9 else 2 * x)


class Around(nn.Module):
    """The image itself is needed at the end."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(11, 8)

    def forward(self, x):
        return self.fc(torch.cat([self.conv(x), x], 1).mean((2, 3)))


def test_what_cannot_be_traced_is_not_cut():
    """It is trained on images then."""
    assert cut_trunk(adapted(Branching(), "fc")) is None


def test_what_goes_around_is_waited_for():
    """The cut is where both have come together."""
    check_halves(adapted(Around(), "fc"), (11,))


def test_the_backbone_stays_as_it_is():
    """Tracing leaves no mark on the model or the network."""
    backbone = tiny_backbone(0)
    generator = torch.Generator().manual_seed(0)
    model = attach(backbone, create("adapter", "head"), create("norm policy", "frozen"), generator)
    kinds = [type(module) for module in model.module.modules()]
    assert cut_trunk(model) is not None
    assert [type(module) for module in model.module.modules()] == kinds
    assert replace(backbone) == backbone

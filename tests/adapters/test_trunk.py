"""Where a network can be cut, and that both halves are the whole."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import SIDE, jiggle, random_images, tiny_backbone, tiny_model
from torch import nn

from fedadapt.adapters import attach
from fedadapt.adapters.trunk import cut_trunk
from fedadapt.backbones.backbone import content_digest, finish
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


class Around(nn.Module):
    """The image itself is needed at the end."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(11, 8)

    def forward(self, x):
        return self.fc(torch.cat([self.conv(x), x], 1).mean((2, 3)))


class Tower(nn.Module):
    """Tokens through a middle that is trained, of which each network here makes something else.

    Args:
        middle: ``(self, tokens) -> tokens``, with `first` and `second` at hand.
    """

    def __init__(self, middle):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16)
        self.first, self.second, self.fc = (nn.Linear(16, 16) for _ in range(3))
        self.middle = middle

    def forward(self, x):
        return self.fc(self.middle(self, self.conv(x).flatten(2).mT.contiguous()).mean(1))


def tower(middle):
    """It, adapted in the middle."""
    return adapted(Tower(middle), "fc", "lora", rank=2, sites={"include": ["first"], "norms": "above"})


def gated(self, x):
    """No gradient goes through the gate."""
    y = self.first(x).tanh()
    with torch.no_grad():
        gate = self.second(y).sigmoid()
    return y * gate


class Rounded(torch.autograd.Function):
    """Its gradient is another than it looks."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def overwritten(self, x):
    """For its effect alone, which is not seen in noise."""
    x.clamp_(-1e3, 1e3)
    return self.first(x)


def noted(self, x):
    """What it saw last is looked at further on."""
    self.seen = x
    return self.first(x).tanh() + self.seen


def two_rows(self, x):
    """Two views, which are no two images."""
    views = torch.stack([x, x.flip(1)])
    return self.first(views.mean(0)).tanh() + views.sum(0)


HOSTILE = {
    "branching": lambda self, x: self.first(x) if x.sum() > 1e9 else 2 * self.first(x),
    "no gradient": gated,
    "straight through": lambda self, x: Rounded.apply(3 * self.first(x)),
    "in place": lambda self, x: x.add_(self.first(self.norm(x)).tanh()),
    "in place, activation": lambda self, x: x + self.first(torch.relu_(x)),
    "overwritten": overwritten,
    "noted": noted,
    "two rows": two_rows,
}


@pytest.mark.parametrize("middle", HOSTILE.values(), ids=HOSTILE)
def test_a_cut_network_trains_as_the_whole(middle):
    """Whatever a network does: it is not cut, or both halves give its values and gradients, twice on one input."""
    model = tower(middle)
    parts = cut_trunk(model)
    if parts is None:
        return
    trunk, behind = parts
    params = {
        n: t.requires_grad_() for n, t in stack([jiggle(model.start, seed) for seed in range(2)]).items()
    }
    images = random_images(6)
    between = trunk(images).detach()
    for _ in range(2):
        here, there = (one(params, given) for one, given in ((behind, between), (model, images)))
        torch.testing.assert_close(here, there)
        for a, b in zip(
            *(torch.autograd.grad(y.square().sum(), list(params.values())) for y in (here, there)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["branching", "no gradient", "straight through", "overwritten"])
def test_what_tracing_would_change_is_not_cut_there(name):
    """It is trained on images then."""
    assert cut_trunk(tower(HOSTILE[name])) is None


@pytest.mark.parametrize("name", ["in place", "in place, activation", "two rows"])
def test_what_tracing_does_not_change_is_cut(name):
    """The tokens are what both halves have between them; a stack of two views is not."""
    check_halves(tower(HOSTILE[name]), (9, 16))


def test_a_network_is_cut_between_blocks_that_cannot_be_traced():
    """Blocks in a sequence, of which the trained one branches on what it sees."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)

        def forward(self, x):
            return self.lin(x) if x.sum() > 1e9 else 2 * self.lin(x)

    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Block(), Block(), nn.Linear(8, 8)
    )
    model = adapted(module, "5", "lora", rank=2, sites={"include": ["4.lin"], "norms": "above"})
    trunk, _ = check_halves(model, (8,))
    assert hasattr(trunk, "3")


def test_many_channels_are_no_hindrance():
    """What the halves are tried out with does not grow from branch to branch."""
    layers = [nn.Conv2d(3, 128, 3, padding=1, stride=4)]
    for _ in range(24):
        layers += [nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 8))
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
    backbone = finish("deep", module, str(len(module) - 1), 5, generator, None, image=(3, SIDE, SIDE))
    adapter = create("adapter", "parallel", {"sites": {"last": 23, "norms": "above"}})
    model = attach(backbone, adapter, create("norm policy", "frozen"), generator)
    assert cut_trunk(model) is not None


def test_what_goes_around_is_waited_for():
    """The cut is where both have come together."""
    check_halves(adapted(Around(), "fc"), (11,))


def test_the_backbone_stays_as_it_is():
    """Tracing leaves no mark on the model or the network."""
    backbone = tiny_backbone(0)
    generator = torch.Generator().manual_seed(0)
    model = attach(backbone, create("adapter", "head"), create("norm policy", "frozen"), generator)
    kinds = [type(module) for module in model.module.modules()]
    noted = [set(module.__dict__) for module in model.module.modules()]
    assert cut_trunk(model) is not None
    assert [type(module) for module in model.module.modules()] == kinds
    assert [set(module.__dict__) for module in model.module.modules()] == noted
    assert backbone.digest == content_digest(backbone.module, backbone.head)

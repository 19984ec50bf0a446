"""Every family of vision networks takes adapters: it starts unchanged, trains by client, and merges if it can."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from contracts.cases import draw_norms, jiggle
from torch import nn

from fedadapt.adapters import attach, merge
from fedadapt.adapters.probe import noise
from fedadapt.backbones import wrap
from fedadapt.errors import AttachError, BackboneError
from fedadapt.params import Group, expand, stack
from fedadapt.registry import create


@dataclass(frozen=True)
class Family:
    """A network, an adapter on it, and how many sites that has.

    Args:
        model: the name in its library.
        sites: how many sites the adapter finds.
        adapter: by name.
        options: of the adapter.
        size: of the images.
        library: timm or torchvision.
        merges: whether it does.
    """

    model: str
    sites: int
    adapter: str = "seeded"
    options: dict[str, Any] = field(default_factory=lambda: {"rank": 4})
    size: int = 64
    library: str = "timm"
    merges: bool = True


def kernels(*sizes, **options):
    """Options that ask for branches beside kernels of these sizes."""
    return {"sites": {"kernel_sizes": sizes}} | options


FAMILIES = [
    Family("resnet18", 16),
    Family("resnet50", 16, "low_rank", size=32),
    Family("regnetx_002", 14, "diagonal", {}),
    Family("regnety_002", 14, "grouped", {"groups": 4}),
    Family("convnext_atto", 24, "seeded", kernels(1, rank=4), size=32),
    Family("convnext_tiny", 36, "low_rank", size=32),
    Family("efficientnet_b0", 17, "parallel", kernels(3, 5)),
    Family("tf_efficientnet_lite0", 12, "diagonal", kernels(3, 5)),
    Family("mobilenetv3_small_050", 12, "series", kernels(3, 5)),
    Family("vit_tiny_patch16_224", 48, "seeded", size=32),
    Family("vit_tiny_patch16_224", 48, "bottleneck", size=32, merges=False),
    Family("swin_tiny_patch4_window7_224", 51, "low_rank", size=56),
    Family("maxvit_pico_rw_256", 101, "seeded", kernels(3, rank=4), size=64),
    Family("nf_regnet_b0", 17, "diagonal", {}, merges=False),
    Family("resnet50_gn", 16, "diagonal", {}, size=32),
    Family("densenet121", 58, "seeded", size=32),
    Family("resnet18", 16, "lora", {"rank": 2}, library="torchvision"),
    Family("vit_b_32", 25, "bias", {}, size=32, library="torchvision"),
]


def make(family):
    """The family's backbone with non-trivial norms."""
    options = {"model": family.model, "pretrained": False, "image_size": family.size}
    backbone = create("backbone", family.library, options)(5, torch.Generator().manual_seed(0))
    draw_norms(backbone.module)
    with torch.no_grad():
        backbone.module.get_submodule(backbone.head).weight.mul_(30)
    return backbone


def check(backbone, adapter, options, *, merges):
    """Attaches, and holds the model to what every adapted model promises."""
    policy = create("norm policy", "frozen")
    model = attach(backbone, create("adapter", adapter, options), policy, torch.Generator().manual_seed(0))
    images = noise(backbone.image, 2)
    with torch.inference_mode():
        expected = backbone.module(images)
        assert float(expected.std()) > 1e-3
        torch.testing.assert_close(model(expand(model.start, 2), images), expected, rtol=1e-3, atol=1e-3)
        own = [jiggle(model.start, seed, scale=0.02) for seed in range(2)]
        together = model(stack(own), images)
        for client, params in enumerate(own):
            alone = model(expand(params, 1), images[client : client + 1])
            torch.testing.assert_close(together[client : client + 1], alone, rtol=1e-3, atol=1e-3)
    if merges:
        merge(model, own[0])
    else:
        with pytest.raises(AttachError, match="cannot be merged|no weight computes the same"):
            merge(model, own[0])
    return model


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.library}-{f.model}-{f.adapter}")
def test_a_family_takes_adapters(family):
    """Sites, norms and head are found; two clients get what each gets alone; the merged network is the same."""
    model = check(make(family), family.adapter, family.options, merges=family.merges)
    assert len(model.sites) == family.sites
    assert {Group.ADAPTER, Group.HEAD} <= {model.groups[name] for name in model.start}


def test_downsample_branches_are_sites_like_others():
    """The pointwise convolutions of a residual net's shortcuts take branches, and merge."""
    generator = torch.Generator().manual_seed(0)
    options = {"model": "resnet18", "pretrained": False, "image_size": 32}
    backbone = create("backbone", "timm", options)(5, generator)
    adapter = create("adapter", "parallel", {"sites": {"kernel_sizes": (1, 3)}})
    model = attach(backbone, adapter, create("norm policy", "frozen"), generator)
    names = [site.name for site in model.sites]
    shortcuts = [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]
    assert len(names) == 16 + 3
    assert [name for name in names if "downsample" in name] == shortcuts
    params = jiggle(model.start, scale=0.02)
    with torch.inference_mode():
        images = noise(backbone.image, 3)
        ours, theirs = merge(model, params)(images), model(expand(params, 1), images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class Mine(nn.Module):
    """A user's own network: a residual convolution, a group norm, and a layer norm before the head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.utils.skip_init(nn.Conv2d, 1, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.body = nn.utils.skip_init(nn.Conv2d, 8, 8, 3, padding=1)
        self.last, self.out = nn.LayerNorm(8), nn.utils.skip_init(nn.Linear, 8, 3)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.body(torch.relu(x))
        return self.out(self.last(x.mean((2, 3))))


def test_a_network_of_no_library_takes_adapters():
    """It is copied, its last linear layer becomes the head, and group and layer norms are trained by client."""
    mine = Mine()
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    backbone = wrap(mine, 5, torch.Generator().manual_seed(0), image=(1, 10, 12))
    assert (backbone.head, backbone.name, mine.out.out_features) == ("out", "Mine", 3)
    with torch.no_grad():
        backbone.module.out.weight.mul_(30)
    model = check(backbone, "parallel", {}, merges=True)
    norms = {name for name in model.start if model.groups[name] is Group.NORM_AFFINE}
    assert norms == {"norm.weight", "norm.bias", "last.weight", "last.bias"}


def test_a_layer_that_is_used_without_being_called_is_refused():
    """Torch's encoder reads the weights of its own layers in eval mode; the line says how to go on."""
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    class Tokens(nn.Module):
        """Pixels as tokens."""

        def __init__(self):
            super().__init__()
            self.embed, self.encoder = nn.utils.skip_init(nn.Linear, 3, 8), encoder
            self.head = nn.utils.skip_init(nn.Linear, 8, 2)

        def forward(self, x):
            return self.head(self.encoder(self.embed(x.flatten(2).transpose(1, 2))).mean(1))

    module = Tokens()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    backbone = wrap(module, 2, torch.Generator(), image=(3, 4, 4))
    policy, generator = create("norm policy", "frozen"), torch.Generator()
    with pytest.raises(AttachError, match=r"does not run with adapter 'low_rank' \(.*adapter.sites.exclude"):
        attach(backbone, create("adapter", "low_rank", {"rank": 2}), policy, generator)
    options = {"rank": 2, "sites": {"exclude": ["encoder.*"]}}
    with pytest.raises(AttachError, match="choose adapter 'head'"):
        attach(backbone, create("adapter", "low_rank", options), policy, generator)
    attach(backbone, create("adapter", "head"), policy, generator)


@pytest.mark.parametrize(
    ("library", "options", "said"),
    [
        ("timm", {"model": "deit_tiny_distilled_patch16_224"}, "several heads"),
        ("timm", {"model": "resnetv2_50x1_bit"}, "no linear head at 'head.fc' but a Conv2d"),
        ("torchvision", {"model": "resnet1888"}, "no model 'resnet1888'.*resnet18"),
        ("torchvision", {"model": "squeezenet1_0"}, "no nn.Linear that could be its head"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_by_name(library, options, said):
    """The line has the reason."""
    with pytest.raises(BackboneError, match=said):
        create("backbone", library, options | {"pretrained": False})(4, torch.Generator())


@pytest.mark.parametrize(
    ("name", "wide", "thin"),
    [("convnext_atto", {7}, {1}), ("mobilenetv3_small_100", {3, 5}, {1}), ("efficientnet_b0", {3, 5}, {1})],
)
def test_a_family_has_sites_as_it_is(name, wide, thin):
    """Full branches sit beside convolutions over neighbours, thin ones beside those that mix channels."""
    generator = torch.Generator().manual_seed(0)
    options = {"model": name, "pretrained": False, "image_size": 64}
    backbone = create("backbone", "timm", options)(5, generator)
    for adapters, kernels in (
        (("parallel", "diagonal", "series"), wide),
        (("low_rank", "seeded", "lora", "grouped"), thin),
    ):
        for adapter in adapters:
            model = attach(backbone, create("adapter", adapter), create("norm policy", "frozen"), generator)
            assert {site.kernel_size[0] for site in model.sites if site.kind == "conv"} == kernels
            trained = sum(t.numel() for n, t in model.start.items() if model.groups[n] is Group.ADAPTER)
            assert 0 < trained < 0.15 * backbone.num_parameters


def test_a_network_that_cannot_be_copied_is_refused():
    """Hooks that compute weights keep tensors that cannot be copied; layers without a shape have none yet."""
    generator = torch.Generator().manual_seed(0)

    def hooked():
        net = nn.Sequential(
            nn.Flatten(), nn.utils.skip_init(nn.Linear, 12, 4), nn.utils.skip_init(nn.Linear, 4, 2)
        )
        nn.init.ones_(net[1].weight)
        with pytest.warns(FutureWarning, match="weight_norm"):
            torch.nn.utils.weight_norm(net[1])
        return net

    for make, said in (
        (hooked, "cannot be copied .* use torch.nn.utils.parametrizations"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.utils.skip_init(nn.Linear, 4, 2)),
            "no shape yet at '1.weight'",
        ),
    ):
        with pytest.raises(BackboneError, match=said) as caught:
            wrap(make(), 2, generator, image=(3, 2, 2))
        assert "\n" not in str(caught.value)

"""Branches sit where they are asked to, and a request that cannot be met is answered in one line."""

from __future__ import annotations

import copy

import pytest
import torch
from contracts.cases import tiny_backbone, zoo_backbone
from torch import nn

from fedadapt.adapters import attach
from fedadapt.backbones.backbone import finish
from fedadapt.errors import AttachError
from fedadapt.params import Group
from fedadapt.registry import create


def sites_of(adapter="parallel", backbone=None, **options):
    """The names of the sites that get a branch."""
    adapter, policy = create("adapter", adapter, options), create("norm policy", "frozen")
    model = attach(backbone or tiny_backbone(), adapter, policy, torch.Generator().manual_seed(0))
    return [site.name for site in model.sites]


ALL = ["conv1", *(f"layer{stage}.0.conv{number}" for stage in (1, 2, 3) for number in (1, 2))]


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ({}, ALL),
        ({"last": 2}, ALL[-2:]),
        ({"last": 99}, ALL),
        ({"include": ["layer2.*", "conv1"]}, ["conv1", *ALL[3:5]]),
        ({"exclude": ["*.conv2"]}, ["conv1", *ALL[1::2]]),
        ({"include": ["layer*"], "exclude": ["layer3.*"], "last": 1}, ["layer2.0.conv2"]),
        ({"stages": [1]}, ALL[:3]),
        ({"stages": [2, 3]}, ALL[3:]),
        ({"sizes": {"layer?.0.conv1": 0}}, ["conv1", *ALL[2::2]]),
    ],
)
def test_sites_are_chosen_by_glob_stage_and_place(sites, expected):
    """The tiny network has maps of 12, 6 and 3 pixels a side: three stages, the stem in the first."""
    assert sites_of(sites=sites) == expected


def test_the_rank_is_set_by_site():
    """The first glob that matches counts, and the adapter's own rank where none does."""
    adapter = create("adapter", "low_rank", {"rank": 2, "sites": {"sizes": {"layer3.*": 4, "layer*": 1}}})
    model = attach(tiny_backbone(), adapter, create("norm policy", "frozen"), torch.Generator())
    ranks = {site.name: model.start[f"{site.name}.adapter.up"].shape[-1] for site in model.sites}
    assert ranks == {"conv1": 2} | {n: 4 if n.startswith("layer3") else 1 for n in ALL[1:]}


@pytest.mark.parametrize("policy", ["frozen", "local"])
def test_norms_below_the_first_branch_rest_if_asked(policy):
    """Their affine is not trained; whatever else a policy lets statistics do, they do."""
    norms = {
        which: attach(
            tiny_backbone(),
            create("adapter", "parallel", {"sites": {"include": ["layer3.0.conv2"], "norms": which}}),
            create("norm policy", policy),
            torch.Generator().manual_seed(0),
        )
        for which in ("all", "above")
    }
    trained = {w: [n for n in m.start if m.groups[n] is Group.NORM_AFFINE] for w, m in norms.items()}
    assert trained["above"] == ["layer3.0.bn2.weight", "layer3.0.bn2.bias"]
    assert len(trained["all"]) == 2 * 7
    assert norms["above"].moving == norms["all"].moving
    both = norms["above"].groups.keys() & norms["all"].groups.keys()
    assert all(norms["above"].groups[name] is norms["all"].groups[name] for name in both)


def test_norms_above_no_branch_at_all_are_refused():
    """A residual net has no bias but those of its norms."""
    with pytest.raises(AttachError, match="norms is 'above', but this backbone has no place for a branch"):
        attach(
            tiny_backbone(),
            create("adapter", "bias", {"sites": {"norms": "above"}}),
            create("norm policy", "frozen"),
            torch.Generator().manual_seed(0),
        )


def test_linear_layers_are_sites_of_their_own():
    """Low-rank branches take both kinds unless one is asked for, and never the head."""
    sizes = {"kernel_sizes": (3, 5, 7)}
    assert len(sites_of("low_rank", zoo_backbone(), rank=2, sites=sizes)) == 6
    assert sites_of("low_rank", zoo_backbone(), rank=2, sites={"layers": ["linear"]}) == ["17"]
    assert len(sites_of("low_rank", zoo_backbone(), rank=2, sites=sizes | {"layers": ["conv"]})) == 5


@pytest.mark.parametrize(
    ("adapter", "options", "said"),
    [
        ("parallel", {"sites": {"kernel_sizes": (5,)}}, r"no site.*kernels: 3x3.*adapter.sites.kernel_sizes"),
        ("parallel", {"sites": {"layers": ["linear"]}}, r"no site for adapter 'parallel'"),
        (
            "parallel",
            {"sites": {"include": ["layr2.*"]}},
            r"'layr2.\*' matches none of the 7 sites.*layer2.0.conv1",
        ),
        ("parallel", {"sites": {"exclude": ["fc"]}}, r"'fc' matches none"),
        ("low_rank", {"sites": {"sizes": {"stem": 4}}}, r"'stem' matches none"),
        ("parallel", {"sites": {"stages": [4]}}, r"no stage 4.*3 sizes; use stages 1 to 3"),
        ("low_rank", {"rank": 9}, r"rank=9 is larger than the channels of every site \(at most 8"),
        ("seeded", {"rank": 100}, r"rank=100 is larger"),
        (
            "low_rank",
            {"rank": 2, "sites": {"sizes": {"layer3.*": 500}}},
            r"sizes\['layer3.\*'\]=500 is larger",
        ),
        ("grouped", {"groups": 4, "sites": {"sizes": {"layer3.*": 7}}}, r"sizes\['layer3.\*'\]=7 divides"),
        ("low_rank", {"rank": 999, "sites": {"sizes": {"layer1*": 4}}}, "adapter.rank=999 is larger"),
        ("parallel", {"sites": {"include": ["conv1"], "exclude": ["c*1"]}}, "leaves none of the 7 sites"),
        ("parallel", {"sites": {"sizes": {"*": 0}}}, "leaves none of the 7 sites"),
        ("bias", {"sites": {"include": ["zzz"]}}, "no site for adapter 'bias'"),
        ("grouped", {"groups": 5}, r"groups=5 divides the channels of no site \(.*4 and 4"),
    ],
)
def test_what_cannot_be_placed_is_refused_in_one_line(adapter, options, said):
    """The line has the value, what is allowed, and what comes near."""
    with pytest.raises(AttachError, match=said) as caught:
        sites_of(adapter, **options)
    assert "\n" not in str(caught.value)


def plain(*layers, image=(3, 8, 8)):
    """A user's own network: some layers, pooling and a head."""
    module = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.utils.skip_init(nn.Linear, 4, 2)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return finish("mine", module, str(len(module) - 1), 2, torch.Generator(), None, image)


def conv(channels):
    """A 3x3 convolution to 4 channels."""
    return nn.utils.skip_init(nn.Conv2d, channels, 4, 3, padding=1)


def test_one_module_in_two_places_is_refused():
    """Replacing it under one name would leave it untouched under the other."""
    twice = conv(4)
    with pytest.raises(AttachError, match=r"one module under several names \(1, 2\)"):
        sites_of(backbone=plain(conv(3), twice, twice))
    norm = nn.BatchNorm2d(4)
    with pytest.raises(AttachError, match=r"one module under several names \(1, 3\)"):
        sites_of(backbone=plain(conv(3), norm, conv(4), norm))


def test_a_layer_that_is_never_called_is_no_site():
    """A branch there would be trained by nothing."""

    class Spare(nn.Sequential):
        """Calls its first layer only."""

        def forward(self, x):
            return self[0](x)

    assert sites_of(backbone=plain(Spare(conv(3), conv(4)))) == ["0.0"]


def test_a_layer_that_sees_no_images_is_no_site():
    """A table of positions goes through it once for all images, so its rows belong to no client."""

    class Shifted(nn.Module):
        """Adds what a linear layer makes of four fixed positions."""

        def __init__(self):
            super().__init__()
            self.conv, self.table = conv(3), nn.utils.skip_init(nn.Linear, 2, 4)

        def forward(self, x):
            return self.conv(x) + self.table(torch.ones(4, 2)).mean(0)[:, None, None]

    assert sites_of("low_rank", plain(Shifted()), rank=2) == ["0.conv"]


def test_a_network_that_cannot_run_is_refused():
    """The line has the shape of the image and the reason."""
    with pytest.raises(
        AttachError, match=r"'mine' cannot run in eval mode on an image of 1x8x8 \(.*channels"
    ) as caught:
        sites_of(backbone=plain(conv(3), image=(1, 8, 8)))
    assert "\n" not in str(caught.value)


class Answering(nn.Module):
    """A network that gives its logits in another way."""

    def __init__(self, answer):
        super().__init__()
        self.head, self.answer = nn.utils.skip_init(nn.Linear, 3, 2), answer

    def forward(self, x):
        return self.answer(self.head(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda logits: {"logits": logits}, "gives a dict, not a tensor of logits"),
        (lambda logits: (logits, None), "gives a tuple, not a tensor"),
        (lambda logits: logits / 0, "gives infinite or NaN outputs"),
    ],
)
def test_a_network_that_gives_no_logits_is_refused(answer, said):
    """The line says what it gives."""
    backbone = finish("mine", Answering(answer), "head", 2, torch.Generator(), None, (3, 8, 8))
    with pytest.raises(AttachError, match=said):
        sites_of("head", backbone)


def test_a_layer_that_is_called_by_keyword_is_no_site():
    """The network runs; what other layers do is changed, that one is left alone."""

    class Named(nn.Conv2d):
        """Calls itself by keyword."""

    class Net(nn.Module):
        """Two convolutions, one of which is called by keyword."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = conv(3), conv(4), nn.utils.skip_init(nn.Linear, 4, 2)

        def forward(self, x):
            return self.head(self.b(input=self.a(x)).mean((2, 3)))

    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    backbone = finish("mine", net, "head", 2, torch.Generator(), None, (3, 8, 8))
    assert sites_of("parallel", backbone) == ["a"]


def test_a_layer_that_is_called_otherwise_for_more_images_is_no_site():
    """A network may use a layer for single images alone; no branch is put there, and it runs."""

    class Net(nn.Module):
        """A convolution, and one that adds nothing and is used for a single image."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = conv(3), conv(4), nn.utils.skip_init(nn.Linear, 4, 2)

        def forward(self, x):
            x = self.a(x)
            if len(x) == 1:
                x = x + 0 * self.b(x)
            return self.head(x.mean((2, 3)))

    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    backbone = finish("mine", net, "head", 2, torch.Generator(), None, (3, 8, 8))
    assert sites_of("parallel", backbone) == ["a"]


def test_a_network_that_mixes_images_is_refused():
    """Without running statistics a batch norm looks at the whole batch, even in eval mode."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(AttachError, match="another output when it comes with others"):
        sites_of(backbone=plain(conv(3), norm))


def test_a_network_that_is_random_in_eval_mode_is_refused():
    """A branch could not be told from noise."""

    class Noisy(nn.Module):
        """Adds new noise at every call."""

        def __init__(self):
            super().__init__()
            self.generator = torch.Generator()

        def __deepcopy__(self, memo):
            return copy.copy(self)

        def forward(self, x):
            return x + torch.randn(x.shape, generator=self.generator)

    with pytest.raises(AttachError, match="random in eval mode"):
        sites_of(backbone=plain(conv(3), Noisy()))


def test_trying_a_backbone_out_leaves_no_trace():
    """No hook stays on the modules of the backbone."""
    backbone = tiny_backbone()
    sites_of(backbone=backbone)
    assert not any(module._forward_hooks for module in backbone.module.modules())

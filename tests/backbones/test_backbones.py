"""Backbones have the sizes their papers state, and are who their digest says they are."""

from __future__ import annotations

import pytest
import torch

from fedadapt.backbones import ResNet, content_digest
from fedadapt.backbones.backbone import finish
from fedadapt.errors import BackboneError
from fedadapt.registry import create


def make(name, num_classes=10, seed=0, **options):
    """A backbone by its registered name."""
    return create("backbone", name, options)(num_classes, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("resnet26", {"weights": "random"}, 5_817_258),
        ("resnet20", {}, 269_722),
        ("resnet32", {}, 464_154),
        ("resnet56", {}, 853_018),
        ("timm", {"model": "resnet18", "pretrained": False}, 11_181_642),
    ],
)
def test_parameter_counts(name, options, count):
    """With 10 classes each network has exactly the parameters of its architecture."""
    assert make(name, **options).num_parameters == count


@pytest.mark.parametrize(
    ("name", "options"), [("resnet20", {}), ("timm", {"model": "resnet18", "pretrained": False})]
)
def test_building_uses_only_its_own_generator(name, options):
    """The same generator gives the same network, and torch's global random state stays as it was."""
    before = torch.random.get_rng_state()
    first = make(name, **options)
    torch.rand(5)
    torch.random.set_rng_state(before)
    second = make(name, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert make(name, seed=1, **options).digest != first.digest


def test_a_backbone_is_frozen_and_in_eval_mode():
    """No parameter wants a gradient and no norm would move."""
    module = make("resnet20").module
    assert not any(p.requires_grad for p in module.parameters())
    assert not any(m.training for m in module.modules())


def test_the_digest_sees_every_tensor_but_the_head():
    """One changed value anywhere gives another digest; the head and the batch counters do not count."""
    backbone = make("resnet20", width=0.25)
    for name, tensor in backbone.module.state_dict().items():
        old = tensor.clone()
        tensor.view(-1)[-1] += 1
        unseen = name.startswith("fc.") or name.endswith("num_batches_tracked")
        assert (content_digest(backbone.module, "fc") == backbone.digest) == unseen, name
        tensor.copy_(old)
    assert content_digest(backbone.module, "fc") == backbone.digest


def test_the_digest_does_not_depend_on_memory_layout_or_classes():
    """Two parties with other heads and memory formats still have the same backbone."""
    backbone = make("resnet20", width=0.25)
    assert content_digest(backbone.module.to(memory_format=torch.channels_last), "fc") == backbone.digest
    module = backbone.module
    other = finish("other", module, "fc", 3, torch.Generator().manual_seed(5), None)
    assert other.digest == backbone.digest
    assert other.num_bytes == 4 * (sum(t.numel() for t in module.state_dict().values()) - 3 * 17 - 19)


def test_the_digest_sees_a_tensor_without_axes():
    """A scale that is one number counts as any other tensor does."""
    digests = []
    for scale in (1.0, 2.0):
        module = make("resnet20", width=0.25).module
        module.register_buffer("scale", torch.tensor(scale))
        digests.append(content_digest(module, "fc"))
    assert digests[0] != digests[1]


def test_a_head_that_is_no_linear_layer_is_refused():
    """The message names the place."""
    module = ResNet(1, (4, 4, 4, 4), (1, 1, 1), "average", stem_relu=True, end_norm=True, num_classes=2)
    for head in ("conv1", "nowhere", ""):
        with pytest.raises(BackboneError, match=f"at {head!r}"):
            finish("x", module, head, 2, torch.Generator(), None)


@pytest.mark.parametrize(("name", "side"), [("resnet20", 8), ("resnet26", 4)])
def test_maps_end_at_the_size_of_the_paper(name, side):
    """32x32 images end as 8x8 maps in the CIFAR nets and as 4x4 in ResNet-26."""
    options = {"width": 0.1} | ({"weights": "random"} if name == "resnet26" else {})
    module = make(name, **options).module
    seen = []
    module.layer3.register_forward_hook(lambda layer, given, out: seen.append(out.shape[-2:]))
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(side, side)]

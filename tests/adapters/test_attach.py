"""An adapted model starts as the pretrained network, trains what its plan says and leaves the backbone alone."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import draw_norms, jiggle, random_images, tiny_backbone, tiny_model

from fedadapt.adapters import attach
from fedadapt.backbones import content_digest
from fedadapt.errors import AttachError
from fedadapt.params import Group, expand
from fedadapt.registry import create


def model_of(backbone, adapter="parallel", norms="frozen", **options):
    """An adapted model on any backbone."""
    generator = torch.Generator().manual_seed(0)
    return attach(backbone, create("adapter", adapter, options), create("norm policy", norms), generator)


def backbone_of(name, num_classes=10, **options):
    """A backbone by its registered name."""
    return create("backbone", name, options)(num_classes, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "classes", "counts"),
    [
        ("resnet26", {"weights": "random"}, 10, (645_216, 7_744, 2_570)),
        ("resnet20", {}, 10, (29_744, 1_376, 650)),
        ("timm", {"model": "resnet18", "pretrained": False, "image_size": 64}, 10, (1_220_608, 9_600, 5_130)),
    ],
)
def test_trained_values_of_known_networks(name, options, classes, counts):
    """Adapters, norm affine and head have exactly as many values as can be counted by hand."""
    model = model_of(backbone_of(name, classes, **options))
    found = dict.fromkeys((Group.ADAPTER, Group.NORM_AFFINE, Group.HEAD), 0)
    for tensor_name, tensor in model.start.items():
        found[model.groups[tensor_name]] += tensor.numel()
    assert tuple(found.values()) == counts


@pytest.mark.parametrize(
    "model", ["resnet18", "regnetx_002", "efficientnet_b0", "mobilenetv3_small_050", "densenet121"]
)
def test_timm_networks_start_unchanged(model):
    """Norms that fuse an activation keep it: with zero adapters the outputs are the network's own."""
    backbone = backbone_of("timm", 4, model=model, pretrained=False, image_size=48)
    draw_norms(backbone.module)
    adapted = model_of(backbone, sites={"kernel_sizes": (3, 5, 7)})
    images = random_images(2, side=48)
    with torch.inference_mode():
        expected = backbone.module(images)
        torch.testing.assert_close(adapted(expand(adapted.start, 1), images), expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0


@pytest.mark.parametrize("norms", ["frozen", "local", "averaged", "pooled"])
def test_round_zero_is_the_pretrained_network(norms):
    """At the start every client's logits are the backbone's, for several clients at once."""
    backbone = tiny_backbone()
    model = model_of(backbone, norms=norms)
    images = random_images(6)
    torch.testing.assert_close(
        model(expand(model.start, 3), images), backbone.module(images), rtol=1e-5, atol=1e-5
    )


def test_a_zero_branch_adds_exactly_nothing():
    """The site's output is that of its convolution, bit for bit."""
    model = tiny_model()
    site = model.module.get_submodule(model.sites[1].name)
    x = torch.randn(2, site.base.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(site(x), site.base(x))


def test_the_start_of_rebuffi_is_another_function():
    """Random adapters have the variance of the paper, and change the outputs."""
    backbone = backbone_of("resnet20")
    model = model_of(backbone, init="rebuffi")
    images = random_images(2)
    assert not torch.allclose(model(expand(model.start, 1), images), backbone.module(images), rtol=0.1)
    widest = model.start["layer3.2.conv2.adapter.weight"]
    assert float(widest.std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert abs(float(widest.mean())) < 0.01


@pytest.mark.parametrize("adapter", ["parallel", "full"])
@pytest.mark.parametrize("norms", ["frozen", "averaged"])
def test_attaching_and_training_leave_the_backbone_alone(adapter, norms):
    """Digest, modules and outputs of the backbone are those of before, even after a training pass in bf16."""
    backbone = tiny_backbone()
    kinds = [type(module) for module in backbone.module.modules()]
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    model = model_of(backbone, adapter, norms).to("cpu", torch.bfloat16)
    params = expand(model.start, 1)
    model(params, random_images(4), mask=torch.ones(1, 4, dtype=torch.bool), training=True)
    for tensor in params.values():
        tensor.zero_()
    assert content_digest(backbone.module, "fc") == backbone.digest
    assert [type(module) for module in backbone.module.modules()] == kinds
    assert all(torch.equal(before[n], t) for n, t in backbone.module.state_dict().items())


def test_only_moving_norms_move_and_only_in_training():
    """Running statistics change in a training pass under a moving policy, and never otherwise."""
    for norms in ("frozen", "local", "averaged", "pooled"):
        model = tiny_model("norm_head", norms)
        for training in (False, True):
            params = expand(model.start, 2)
            model(params, random_images(6), mask=torch.ones(2, 3, dtype=torch.bool), training=training)
            changed = {name for name in params if not torch.equal(params[name][0], model.start[name])}
            assert changed == (set(model.moving) if training else set())
        assert bool(model.moving) == (norms != "frozen")


def test_every_tensor_has_the_group_of_its_module():
    """Branches, norms, head and the frozen rest are told apart by type, and the batch counter never changes."""
    model = tiny_model("parallel", "averaged")
    assert set(model.groups.values()) == set(Group)
    assert model.groups["conv1.base.weight"] is Group.BACKBONE
    assert model.groups["conv1.adapter.weight"] is Group.ADAPTER
    assert model.groups["bn1.weight"] is model.groups["layer1.0.bn2.bias"] is Group.NORM_AFFINE
    assert model.groups["bn1.running_var"] is Group.NORM_STATISTICS
    assert model.groups["fc.bias"] is Group.HEAD
    assert not any("num_batches_tracked" in name for name in model.start)


def test_a_network_without_a_fitting_site_is_refused():
    """The message names the kernels that are there and what to do."""
    with pytest.raises(AttachError, match=r"no site for adapter 'parallel'.*kernels: 3x3.*norm_head"):
        model_of(tiny_backbone(), sites={"kernel_sizes": (5,)})


def test_bf16_computes_in_bf16_and_answers_in_fp32():
    """The frozen part is cast, trainable tensors are not, and the logits stay close."""
    full, half = tiny_model(), tiny_model().to("cpu", torch.bfloat16)
    images = random_images(4)
    params = expand(half.start, 2)
    assert all(tensor.dtype == torch.float32 for tensor in params.values())
    assert half.module.conv1.base.weight.dtype == torch.bfloat16
    logits = half(params, images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, full(params, images), rtol=0.1, atol=0.05)


def test_tied_weights_stay_tied_where_they_are_moved():
    """Under full fine-tuning two layers that share a weight train it together, also in another place or type."""
    backbone = tiny_backbone()
    blocks = backbone.module.layer1[0]
    blocks.conv2.weight = blocks.conv1.weight
    adapter, policy = create("adapter", "full"), create("norm policy", "frozen")
    model = attach(backbone, adapter, policy, torch.Generator().manual_seed(0))
    params, images = expand(jiggle(model.start), 1), random_images(2)
    before = model(params, images)
    for _ in range(2):
        model.to("cpu", torch.float32)
        torch.testing.assert_close(model(params, images), before)


def test_clients_do_not_see_each_others_tensors():
    """Each client's logits are those of its own tensors, in its place on the client axis."""
    model = tiny_model()
    tensors = [jiggle(model.start, seed) for seed in range(3)]
    images = random_images(6)
    together = model({n: torch.stack([t[n] for t in tensors]) for n in model.start}, images)
    for place, own in enumerate(tensors):
        alone = model({n: t[None] for n, t in own.items()}, images[2 * place : 2 * place + 2])
        torch.testing.assert_close(together[2 * place : 2 * place + 2], alone, rtol=1e-4, atol=1e-5)

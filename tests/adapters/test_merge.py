"""A merged network is a stock model that computes what the adapted one computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contracts.cases import jiggle, random_images, tiny_backbone, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.adapters import attach, merge, unmerge
from fedadapt.adapters.hosts import into_centre
from fedadapt.errors import AttachError
from fedadapt.params import weighted_mean
from fedadapt.registry import create


@pytest.mark.parametrize("adapter", ["parallel", "norm_head", "head", "full"])
@pytest.mark.parametrize("norms", ["frozen", "local", "averaged", "pooled"])
def test_merged_equals_unmerged(adapter, norms):
    """Outputs agree within 1e-5 of the largest, and the merged network has the backbone's own modules."""
    model = tiny_model(adapter, norms)
    params = jiggle(model.start)
    plain = merge(model, params)
    assert list(plain.state_dict()) == list(model.backbone.module.state_dict())
    images = random_images(5)
    with torch.inference_mode():
        adapted, merged = model({n: t[None] for n, t in params.items()}, images), plain(images)
    assert float((adapted - merged).abs().max() / adapted.abs().max()) <= 1e-5


@pytest.mark.parametrize("network", ["regnetx_002", "efficientnet_b0"])
def test_grouped_and_depthwise_kernels_merge(network):
    """The branch of a grouped convolution goes into its centre tap as well."""
    generator = torch.Generator().manual_seed(0)
    backbone = create("backbone", "timm", {"model": network, "pretrained": False, "image_size": 48})(
        4, generator
    )
    adapter = create("adapter", "parallel", {"sites": {"kernel_sizes": (3, 5)}})
    model = attach(backbone, adapter, create("norm policy", "frozen"), generator)
    assert any(site.module.groups > 1 for site in model.sites)
    merge(model, jiggle(model.start, scale=0.02))


def test_merging_works_from_a_model_in_bf16():
    """The comparison and the result are fp32, whatever the model trained in."""
    model = tiny_model().to("cpu", torch.bfloat16)
    assert merge(model, jiggle(model.start)).conv1.weight.dtype == torch.float32


def test_merging_changes_neither_model_nor_backbone():
    """What is merged is a copy."""
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.backbone.module.state_dict().items()}
    merge(model, jiggle(model.start))
    assert all(torch.equal(before[n], t) for n, t in model.backbone.module.state_dict().items())


def test_an_adapter_that_is_not_what_it_says_is_refused():
    """If the kernel it claims to equal is another one, the two networks differ and nothing is exported."""
    model = tiny_model()
    wrong = into_centre(lambda site, branch: 1.5 * branch["weight"], 1.0)
    model.adapter = replace(model.adapter, branches=replace(model.adapter.branches, fold=wrong))
    with pytest.raises(AttachError, match="differs from the adapted one"):
        merge(model, jiggle(model.start))


def test_an_adapter_without_a_kernel_is_refused():
    """An adapter that is not linear says so and is named."""
    model = tiny_model()
    branches = replace(model.adapter.branches, fold=None)
    model.adapter = replace(model.adapter, name="bent", branches=branches)
    with pytest.raises(AttachError, match="'bent' is not linear"):
        merge(model, model.start)


def test_values_that_are_no_numbers_are_refused():
    """NaN is named, and tensors of another model are."""
    model = tiny_model()
    params = jiggle(model.start)
    params["conv1.adapter.weight"][0, 0] = float("nan")
    with pytest.raises(AttachError, match=r"infinite or NaN values, in 'conv1.adapter.weight'"):
        merge(model, params)


def test_what_is_no_part_of_the_model_is_refused():
    """Tensors of another adapter, and a network that is not the backbone."""
    model = tiny_model()
    with pytest.raises(AttachError, match="does not fit adapter 'parallel' here: tensor"):
        merge(model, tiny_model("norm_head").start)
    with pytest.raises(AttachError, match="is not backbone 'tiny'"):
        unmerge(torch.nn.Linear(2, 2), model)


@settings(max_examples=8)
@given(weights=st.lists(st.integers(1, 50), min_size=2, max_size=4))
def test_the_mean_of_adapters_is_the_adapter_of_the_mean(weights):
    """By layer, averaging tensors averages the maps, and so the merged kernels."""
    model = tiny_model()
    clients = [jiggle(model.start, seed) for seed in range(len(weights))]
    pairs = list(zip(map(float, weights), clients, strict=True))
    mean = weighted_mean(pairs)
    site = model.module.get_submodule("layer2.0.conv1")
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(9))

    def layer(params):
        kernel = params["layer2.0.conv1.adapter.weight"][None]
        return torch.func.functional_call(site, {"adapter.weight": kernel}, (x,)).detach()

    expected = weighted_mean((w, {"y": layer(params)}) for w, params in pairs)["y"]
    torch.testing.assert_close(layer(mean), expected, rtol=1e-4, atol=1e-5)

    def kernels(params):
        return {n: t for n, t in merge(model, params).state_dict().items() if "conv" in n}

    merged_mean = weighted_mean((w, kernels(params)) for w, params in pairs)
    for name, kernel in kernels(mean).items():
        torch.testing.assert_close(kernel, merged_mean[name], rtol=1e-5, atol=1e-6)


def test_a_merge_by_hand():
    """One 3x3 kernel of ones and an adapter of 2 give a kernel whose centre is 3."""
    backbone = tiny_backbone(widths=(1, 1, 1, 1))
    with torch.no_grad():
        backbone.module.layer1[0].conv1.weight.fill_(1.0)
    adapter, policy = create("adapter", "parallel"), create("norm policy", "frozen")
    model = attach(backbone, adapter, policy, torch.Generator())
    params = {**model.start, "layer1.0.conv1.adapter.weight": torch.tensor([[2.0]])}
    assert merge(model, params).layer1[0].conv1.weight.flatten().tolist() == [1, 1, 1, 1, 3, 1, 1, 1, 1]


def test_a_weight_that_is_changed_before_use_is_refused():
    """A weight-standardised convolution takes a branch, but no weight of it computes the sum."""
    generator = torch.Generator().manual_seed(0)
    options = {"model": "nf_regnet_b0", "pretrained": False, "image_size": 32}
    backbone = create("backbone", "timm", options)(4, generator)
    adapter = create("adapter", "diagonal", {"sites": {"last": 1}})
    model = attach(backbone, adapter, create("norm policy", "frozen"), generator)
    with pytest.raises(
        AttachError, match=r"the ScaledStdConv2d at .* changes its weight before it applies it"
    ):
        merge(model, model.start)


def test_a_weight_that_other_layers_use_is_refused():
    """Folding a branch into it would change them too."""
    backbone = tiny_backbone()
    backbone.module.layer1[0].conv2.weight = backbone.module.layer1[0].conv1.weight
    adapter = create("adapter", "parallel", {"sites": {"include": ["layer1.0.conv1"]}})
    model = attach(backbone, adapter, create("norm policy", "frozen"), torch.Generator())
    with pytest.raises(AttachError, match=r"the weight at 'layer1.0.conv1' is used by other layers too"):
        merge(model, model.start)

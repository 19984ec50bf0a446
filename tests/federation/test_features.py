"""Features of a frozen trunk are computed once, and training on them is training on the images."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from contracts.cases import MEAN, STD, federate, tiny_backbone, tiny_model, tiny_party
from torch import nn

from fedadapt.adapters import attach
from fedadapt.data.augment import Augment
from fedadapt.engines.chunks import choose_chunk
from fedadapt.federation import features
from fedadapt.federation.features import frozen_features
from fedadapt.registry import create

STILL = Augment(pad=0, flip=False)


LAST_STAGE = {"sites": {"include": ["layer3.*"], "norms": "above"}}


def parties(algorithm="fedavg", model=None):
    """Two of the same clients, of which the second keeps features."""
    model = model or tiny_model("head")
    plain = replace(tiny_party(model, algorithm=create("algorithm", algorithm), epochs=2), augment=STILL)
    kept = frozen_features(model, plain.split, STILL, MEAN, STD)
    assert kept is not None
    return plain, replace(plain, features=kept, memory={})


def check_same_rounds(plain, kept):
    """Both end with the same tensors, which are others than at the start."""
    cohorts = [[0, 1, 2, 3, 4, 5], [2, 3, 6, 7, 8]]
    expected, found = federate(plain, cohorts), federate(kept, cohorts)
    for stream, params in expected[-1].items():
        for name, tensor in params.items():
            torch.testing.assert_close(found[-1][stream][name], tensor, rtol=1e-3, atol=2e-6)
    name = next(iter(found[0]["model"]))
    assert not torch.equal(found[-1]["model"][name], found[0]["model"][name])


@pytest.mark.parametrize(
    ("algorithm", "adapter"),
    [
        *itertools.product(["fedavg", "moon", "scaffold", "fedsam", "qfedavg", "apfl"], ["head", "parallel"]),
        # It keeps the head, so there has to be something else.
        ("fedrep", "parallel"),
    ],
)
def test_rounds_end_where_those_on_images_end(algorithm, adapter):
    """Every part of local training that sees the model: references, a second model, phases, the start loss."""
    options = LAST_STAGE if adapter == "parallel" else {}
    check_same_rounds(*parties(algorithm, tiny_model(adapter, **options)))


def test_rounds_of_a_low_rank_adapter_with_dropout_in_bf16():
    """What a branch draws, and what the compute type rounds, is the same on features."""
    model = tiny_model("low_rank", rank=2, sites=LAST_STAGE["sites"] | {"dropout": 0.5})
    plain, kept = parties(model=model.to("cpu", torch.bfloat16))
    cohorts = [[0, 1, 2, 3, 4, 5], [2, 3, 6, 7, 8]]
    expected, found = federate(plain, cohorts), federate(kept, cohorts)
    for name, tensor in expected[-1]["model"].items():
        torch.testing.assert_close(found[-1]["model"][name], tensor, rtol=0.05, atol=2e-3)


def test_no_bit_depends_on_who_was_asked_before():
    """Features of a client are the same whether others were looked at first, and whoever they were."""
    plain, kept = parties()
    again = frozen_features(plain.model, plain.split, STILL, MEAN, STD)
    federate(kept, [[0, 1, 2, 3, 4, 5, 6, 7]])
    first, second = (
        federate(replace(plain, features=f, memory={}), [[3, 4]]) for f in (kept.features, again)
    )
    for name, tensor in first[-1]["model"].items():
        assert torch.equal(second[-1]["model"][name], tensor)


def test_the_network_sees_an_image_once(monkeypatch):
    """Later epochs and rounds look at nothing any more; images go by so many, at the end with some twice."""
    _, kept = parties(model=tiny_model("parallel", **LAST_STAGE))
    seen = []
    trunk = kept.features._trunk
    monkeypatch.setattr(kept.features, "_trunk", lambda images: seen.append(len(images)) or trunk(images))
    federate(kept, [list(range(16))])
    first = len(seen)
    assert set(seen) == {features.BLOCK}
    assert len(kept.split) <= sum(seen) < 2 * len(kept.split)
    federate(kept, [list(range(16))] * 2)
    assert len(seen) == first


def test_they_are_not_kept_where_they_change_cost_little_or_do_not_fit(monkeypatch):
    """Augmented images, something trained from the first layer on, little below it, and a split beyond the bound."""
    model = tiny_model("head")
    split = tiny_party(model).split
    for augment in (Augment(pad=1, flip=False), Augment(pad=0, flip=True)):
        assert frozen_features(model, split, augment, MEAN, STD) is None
    for other in (tiny_model("parallel"), tiny_model("norm_head"), tiny_model("head", "local")):
        assert frozen_features(other, split, STILL, MEAN, STD) is None
    width = model.backbone.module.get_submodule(model.backbone.head).in_features
    monkeypatch.setattr(features, "MEMORY_BYTES", 4 * len(split) * width - 1)
    assert frozen_features(model, split, STILL, MEAN, STD) is None


@pytest.mark.parametrize("behind", [lambda y: 2 * y, lambda y: y.clamp(-1, 1)])
def test_a_head_that_is_not_the_last_layer(behind):
    """What logits go through behind the head they go through on features, too."""
    backbone = tiny_backbone(0)
    inner = backbone.module

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return behind(self.inner(x))

    more = replace(backbone, module=Behind().eval(), head=f"inner.{backbone.head}")
    generator = torch.Generator().manual_seed(0)
    model = attach(more, create("adapter", "head"), create("norm policy", "frozen"), generator)
    check_same_rounds(*parties(model=model))


def test_chunks_are_cut_by_what_lies_above_the_trunk():
    """A step on features holds less than one on images, so more clients fit together."""
    plain, kept = parties(model=tiny_model("parallel", **LAST_STAGE))
    assert choose_chunk(kept) > choose_chunk(plain) > 0


def test_they_are_not_kept_where_their_bits_depend_on_their_place(monkeypatch):
    """A product of odd sizes may round an image otherwise at another place of a block."""
    model = tiny_model("head")
    split = tiny_party(model).split
    trunk, behind = features.cut_trunk(model)

    class Uneven(nn.Module):
        def forward(self, images):
            made = trunk(images)
            made[-1] = torch.nextafter(made[-1], torch.full((), 1e9))
            return made

    for made, expected in ((trunk, True), (Uneven(), False)):
        monkeypatch.setattr(features, "cut_trunk", lambda model, made=made: (made, behind))
        assert (frozen_features(model, split, STILL, MEAN, STD) is not None) == expected

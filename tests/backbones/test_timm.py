"""timm models are made by name, without a network where no weights are asked for."""

from __future__ import annotations

import pytest
import torch

from fedadapt.backbones.weights import save_weights
from fedadapt.errors import BackboneError
from fedadapt.registry import create


def build(**options):
    """A timm backbone with 4 classes."""
    return create("backbone", "timm", options)(4, torch.Generator().manual_seed(0))


def test_an_unknown_model_names_near_ones():
    """The message has the name and models that resemble it."""
    with pytest.raises(BackboneError, match="no model 'resnet1888'.*resnet18"):
        build(model="resnet1888", pretrained=False)
    with pytest.raises(BackboneError, match="near: none"):
        build(model="zzzzzzzz", pretrained=False)
    with pytest.raises(BackboneError, match=r"cannot make 'resnet18.zzz' \(RuntimeError: .*zzz"):
        build(model="resnet18.zzz", pretrained=False)


def test_an_error_without_text_is_one_line(monkeypatch):
    """What a library raises may say nothing; its kind is named."""

    def fail(*args: object, **options: object):
        raise RuntimeError

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(BackboneError, match=r"timm cannot make 'resnet18' \(RuntimeError\); without"):
        build(model="resnet18")
    monkeypatch.setattr("torchvision.models.get_model", fail)
    with pytest.raises(BackboneError, match=r"torchvision cannot make 'resnet18' \(RuntimeError\); without"):
        create("backbone", "torchvision", {"model": "resnet18"})(4, torch.Generator())


def test_the_head_is_the_one_that_timm_names():
    """Networks that call their head otherwise get a fresh one with the right classes too."""
    for model, head in (("resnet18", "fc"), ("efficientnet_b0", "classifier"), ("regnetx_002", "head.fc")):
        backbone = build(model=model, pretrained=False)
        assert backbone.head == head
        assert backbone.module.get_submodule(head).out_features == 4
        assert backbone.mean is None


def test_a_local_file_takes_the_place_of_the_hub(tmp_path):
    """With a weight file nothing is fetched, even if pretrained weights are asked for."""
    moments = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    saved = build(model="resnet18", pretrained=False)
    save_weights(saved.module, tmp_path / "r18.safetensors", moments)
    loaded = build(model="resnet18", weights=str(tmp_path / "r18.safetensors"))
    assert loaded.digest == saved.digest
    assert loaded.mean == (0.1, 0.2, 0.3)

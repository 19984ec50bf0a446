"""The built-in residual networks, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fedadapt.backbones import resnet
from fedadapt.backbones.backbone import Backbone, BuildBackbone, finish
from fedadapt.backbones.weights import load_weights, locate
from fedadapt.registry import register

RANDOM = "random"
"""In place of a weight file, since TOML has no word for none."""

Width = Annotated[float, Field(gt=0, le=16)]


@register("backbone", "resnet26")
def resnet26(*, width: Width = 1.0, weights: str = "resnet26-tiny-imagenet-32") -> BuildBackbone:
    """ResNet-26 of residual adapters (Rebuffi et al. 2018), pretrained on Tiny-ImageNet at 32x32.

    Args:
        width: factor on every channel count.
        weights: a shipped name, a safetensors file, or ``random``.
    """
    return _builder("resnet26", weights, lambda: resnet.resnet26(width=width))


@register("backbone", "resnet20")
def resnet20(*, width: Width = 1.0, weights: str = RANDOM) -> BuildBackbone:
    """CIFAR ResNet-20 (He et al. 2016).

    Args:
        width: factor on every channel count.
        weights: a safetensors file, or ``random``.
    """
    return _builder("resnet20", weights, lambda: resnet.cifar_resnet(20, width=width))


@register("backbone", "resnet32")
def resnet32(*, width: Width = 1.0, weights: str = RANDOM) -> BuildBackbone:
    """CIFAR ResNet-32 (He et al. 2016); options as for resnet20."""
    return _builder("resnet32", weights, lambda: resnet.cifar_resnet(32, width=width))


@register("backbone", "resnet56")
def resnet56(*, width: Width = 1.0, weights: str = RANDOM) -> BuildBackbone:
    """CIFAR ResNet-56 (He et al. 2016); options as for resnet20."""
    return _builder("resnet56", weights, lambda: resnet.cifar_resnet(56, width=width))


def _builder(name: str, weights: str, make: Callable[[], nn.Module]) -> BuildBackbone:
    def build(num_classes: int, generator: torch.Generator) -> Backbone:
        # Constructors draw from torch's global generator; what they draw is overwritten, the state restored.
        with torch.random.fork_rng(devices=[]):
            module = make()
        resnet.initialise(module, generator)
        moments = None if weights == RANDOM else load_weights(module, locate(weights), "fc")
        return finish(name, module, "fc", num_classes, generator, moments)

    return build

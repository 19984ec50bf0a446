"""Any classification model of torchvision, with its own pretrained weights or a local file."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import torch
from pydantic import Field

from fedadapt.backbones.backbone import Backbone, BuildBackbone, drawn_from, finish
from fedadapt.backbones.module import last_linear
from fedadapt.backbones.weights import Moments, load_weights, locate
from fedadapt.errors import BackboneError
from fedadapt.registry import register


@register("backbone", "torchvision")
def torchvision(
    *,
    model: Annotated[str, Field(min_length=1)],
    pretrained: bool = True,
    weights: str | None = None,
    image_size: Annotated[int, Field(ge=1)] = 224,
) -> BuildBackbone:
    """Any torchvision classification model by its name, pretrained by torchvision or from a local file.

    Args:
        model: a torchvision name: ``resnet18``, ``vit_b_16``.
        pretrained: fetch torchvision's default weights (needs a network, or its cache).
        weights: a local safetensors file instead; `pretrained` is then not looked at.
        image_size: height and width of the images. Vision transformers are built for it.
    """

    def build(num_classes: int, generator: torch.Generator) -> Backbone:
        from torchvision import models

        if model not in models.list_models(module=models):
            close = difflib.get_close_matches(model, models.list_models(module=models), n=5)
            raise BackboneError(f"torchvision has no model {model!r}; near: {', '.join(close) or 'none'}")
        sized: dict[str, Any] = {"image_size": image_size} if model.startswith("vit_") else {}
        ready = models.get_model_weights(model).DEFAULT if pretrained and weights is None else None
        with drawn_from(generator):
            try:
                module = models.get_model(model, weights=ready, **sized)
            except Exception as error:
                reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
                raise BackboneError(
                    f"torchvision cannot make {model!r} ({reason}); "
                    "without a network set backbone.weights to a local file, or backbone.pretrained=false"
                ) from error
        head = last_linear(model, module)
        moments: Moments | None = None
        if weights is not None:
            moments = load_weights(module, locate(weights), head)
        elif ready is not None:
            shown = ready.transforms()
            moments = (tuple(shown.mean), tuple(shown.std))
        image = (3, image_size, image_size)
        return finish(model, module, head, num_classes, generator, moments, image)

    return build

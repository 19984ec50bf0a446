"""Any model of the timm library, with its own pretrained weights or a local file."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, cast

import torch
from pydantic import Field

from fedadapt.backbones.backbone import Backbone, BuildBackbone, drawn_from, finish
from fedadapt.backbones.weights import Moments, load_weights, locate
from fedadapt.errors import BackboneError
from fedadapt.registry import register


@register("backbone", "timm")
def timm(
    *,
    model: Annotated[str, Field(min_length=1)],
    pretrained: bool = True,
    weights: str | None = None,
    image_size: Annotated[int, Field(ge=1)] | None = None,
) -> BuildBackbone:
    """Any timm model by its name, pretrained from timm's own source or from a local file.

    Args:
        model: a timm name, with or without tag: ``resnet18``, ``resnet50.a1_in1k``.
        pretrained: fetch the weights that timm names for the model (needs its hub, or its cache).
        weights: a local safetensors file instead; `pretrained` is then not looked at.
        image_size: height and width of the images; none for those it was made for. Networks for one size only,
            such as vision transformers, are built for it.
    """

    def build(num_classes: int, generator: torch.Generator) -> Backbone:
        import timm as library

        if not library.is_model(model.split(".")[0]):
            close = difflib.get_close_matches(model, library.list_models(), n=5)
            raise BackboneError(f"timm has no model {model!r}; near: {', '.join(close) or 'none'}")
        with drawn_from(generator):
            try:
                fixed = library.get_pretrained_cfg_value(model, "fixed_input_size")
                sized: dict[str, Any] = {"img_size": image_size} if image_size and fixed else {}
                module = library.create_model(model, pretrained=pretrained and weights is None, **sized)
            except Exception as error:
                reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
                raise BackboneError(
                    f"timm cannot make {model!r} ({reason}); "
                    "without a network set backbone.weights to a local file, or backbone.pretrained=false"
                ) from error
        settings = cast("dict[str, Any]", module.pretrained_cfg)
        head = settings["classifier"]
        if not isinstance(head, str):
            raise BackboneError(
                f"timm model {model!r} has several heads ({', '.join(map(str, head or ()))}) and one is needed; "
                "choose a variant without distillation"
            )
        channels, height, width = settings["input_size"]
        image = (channels, image_size or height, image_size or width)
        moments: Moments | None = None
        if weights is not None:
            moments = load_weights(module, locate(weights), head)
        elif pretrained:
            moments = (tuple(settings["mean"]), tuple(settings["std"]))
        return finish(model, module, head, num_classes, generator, moments, image)

    return build

"""Fewer bytes for a frozen network: its matrices and kernels as 16-bit floats or 8-bit integers.

Whoever takes part computes with the rounded values, the server and a simulation among them, so that what is sent is
what is meant, and the digest is theirs. Vectors (norms, variances, biases) stay as they are: they are few, and some are
divided by. Scales of integers are powers of two, one for each output channel, which makes rounding twice the same
as rounding once: a party that has a rounded file rounds it again and holds the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

import torch
from torch import Tensor

from fedadapt.backbones.backbone import Backbone, content, content_digest
from fedadapt.errors import BackboneError
from fedadapt.params import is_finite

EXPONENTS = "/exponents"
"""Behind the name of a tensor of integers, in a weight file: the binary exponents of its output channels."""

_LARGEST = 127


class Rounding(StrEnum):
    """What the frozen network is rounded to."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"

    def num_bytes(self, shape: torch.Size) -> int:
        """What a tensor of 32-bit floats takes."""
        return sum(tensor.nbytes for tensor in self.pack("", torch.zeros(shape)).values())

    def pack(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The tensors that stand for one in a weight file, by name."""
        if tensor.ndim < 2 or not tensor.is_floating_point() or self is Rounding.FLOAT32:
            return {name: tensor}
        if self is Rounding.FLOAT16:
            return {name: tensor.half()}
        largest = tensor.abs().flatten(1).amax(1).clamp(min=_LARGEST * 2.0**-120)
        exponents = (largest / _LARGEST).log2().ceil().to(torch.int8)
        codes = (tensor / _across(torch.exp2(exponents.float()), tensor)).round().to(torch.int8)
        return {name: codes, name + EXPONENTS: exponents}


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a weight file, with integers put back on their scales.

    Raises:
        BackboneError: integers and exponents do not fit.
    """
    whole = dict(stored)
    for name in [name for name in stored if name + EXPONENTS in stored]:
        codes, exponents = whole.pop(name), whole.pop(name + EXPONENTS)
        if (
            codes.ndim < 2
            or exponents.shape != codes.shape[:1]
            or {codes.dtype, exponents.dtype} != {torch.int8}
        ):
            raise BackboneError(
                f"integers of {name!r} and their exponents do not fit; fetch the weight file again"
            )
        whole[name] = codes.float() * _across(torch.exp2(exponents.float()), codes)
    return whole


def round_backbone(backbone: Backbone, rounding: Rounding) -> Backbone:
    """The backbone with its tensors rounded, in place; the head is nobody's yet and stays.

    Raises:
        BackboneError: a value is not finite, or too large for 16 bits.
    """
    if rounding is Rounding.FLOAT32:
        return backbone
    num_bytes = 0
    with torch.no_grad():
        for name, tensor in content(backbone.module, backbone.head):
            packed = rounding.pack(name, tensor)
            rounded = unpack(packed)[name].to(tensor.dtype)
            if not is_finite({"before": tensor, "after": rounded}):
                raise BackboneError(
                    f"backbone {backbone.name!r} cannot be rounded to {rounding}: {name} holds values that are too large "
                    "or not finite; set federation.backbone_as to float32"
                )
            tensor.copy_(rounded)
            num_bytes += sum(part.nbytes for part in packed.values())
    digest = content_digest(backbone.module, backbone.head)
    return replace(backbone, digest=digest, num_bytes=num_bytes)


def _across(scales: Tensor, tensor: Tensor) -> Tensor:
    return scales.view(-1, *[1] * (tensor.ndim - 1))

"""The plain codec: every value as a 32-bit float, exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage, count, nothing, unflatten
from fedadapt.params import Params, as_vector
from fedadapt.registry import register


@register("codec", "float32")
def float32() -> Codec:
    """Little-endian 32-bit floats one after the other; exact, 4 bytes a value."""
    return Codec((Stage("float32", encode, decode, nothing, sizes, Law()),))


def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
    """The values of all tensors in order."""
    del key
    values = as_vector(params).detach().to("cpu", torch.float32)
    return {}, (values.numpy().astype("<f4", copy=False).tobytes(),)


def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
    """The tensors that `encode` packed."""
    del params, key
    return unflatten(np.frombuffer(parts[0], dtype="<f4").astype(np.float32), layout)


def sizes(layout: Layout) -> tuple[int, ...]:
    """4 bytes a value."""
    return (4 * count(layout),)

"""The plain codec: every value as a 32-bit float, exact."""

from __future__ import annotations

import numpy as np
import torch

from fedadapt.codecs.codec import Codec, Layout
from fedadapt.errors import FrameError
from fedadapt.params import Params
from fedadapt.registry import register


@register("codec", "float32")
def float32() -> Codec:
    """Little-endian 32-bit floats one after the other; exact, 4 bytes a value."""
    return Codec("float32", encode, decode, num_bytes)


def encode(params: Params) -> bytes:
    """The values of all tensors in order."""
    arrays = [
        tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False) for tensor in params.values()
    ]
    return b"".join(array.tobytes() for array in arrays)


def decode(data: bytes, layout: Layout) -> Params:
    """The tensors that `encode` packed."""
    expected = num_bytes(layout)
    if len(data) != expected:
        raise FrameError(f"section has {len(data)} bytes, its layout needs {expected}")
    values = torch.from_numpy(np.frombuffer(bytearray(data), dtype="<f4").astype(np.float32, copy=False))
    sizes = [shape.numel() for shape in layout.values()]
    pieces = values.split(sizes) if sizes else ()
    return {name: piece.view(shape) for (name, shape), piece in zip(layout.items(), pieces, strict=True)}


def num_bytes(layout: Layout) -> int:
    """4 bytes a value."""
    return 4 * sum(shape.numel() for shape in layout.values())

"""Half precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedadapt.codecs.codec import Codec, Key, Law, Layout, Stage, count, flatten, nothing, unflatten
from fedadapt.errors import FrameError
from fedadapt.params import Params
from fedadapt.registry import register

_LARGEST = 65504.0


@register("codec", "float16")
def float16() -> Codec:
    """IEEE half precision, rounded to nearest: 2 bytes a value, 11 significant bits, up to 65504."""
    return Codec(
        (
            Stage(
                "float16",
                encode,
                decode,
                nothing,
                sizes,
                Law(2.0**-11, 2.0**-25, unbiased=False, loss=2.0**-22),
            ),
        )
    )


def encode(params: Params, key: Key) -> tuple[Params, tuple[bytes, ...]]:
    """The rounded values.

    Raises:
        FrameError: a value is larger than half precision has.
    """
    del key
    values = flatten(params)
    largest = np.abs(values).max(initial=0.0)
    if largest > _LARGEST:
        raise FrameError(
            f"a value of size {largest:.4g} is over float16's {_LARGEST:.0f}; use codec bfloat16"
        )
    return {}, (torch.from_numpy(values).half().numpy().astype("<f2", copy=False).tobytes(),)


def decode(params: Params, parts: Sequence[bytes], layout: Layout, key: Key) -> Params:
    """The tensors that `encode` packed."""
    del params, key
    return unflatten(np.frombuffer(parts[0], dtype="<f2").astype(np.float32), layout)


def sizes(layout: Layout) -> tuple[int, ...]:
    """2 bytes a value."""
    return (2 * count(layout),)

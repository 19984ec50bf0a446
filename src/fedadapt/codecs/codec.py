"""What a codec is: a pair of functions between tensors and bytes, and the exact size of the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fedadapt.params import Params

Layout = Mapping[str, torch.Size]
"""Names and shapes of the tensors of a section, in the order they are packed."""


@dataclass(frozen=True)
class Codec:
    """How the tensors of one section are packed.

    Args:
        name: with every option that changes the bytes; both sides must have the same.
        encode: ``(params) -> bytes``.
        decode: ``(bytes, layout) -> params`` in fp32; raises `FrameError` if the bytes do not fit the layout.
        num_bytes: ``(layout) -> bytes``, exactly; None if it depends on the values.
    """

    name: str
    encode: Callable[[Params], bytes]
    decode: Callable[[bytes, Layout], Params]
    num_bytes: Callable[[Layout], int | None]

    @property
    def digest(self) -> bytes:
        """8 bytes that stand for the name in a frame."""
        return hashlib.blake2b(self.name.encode(), digest_size=8).digest()

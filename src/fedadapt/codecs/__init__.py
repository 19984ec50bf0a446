"""How tensors become bytes: one codec a file."""

from fedadapt.codecs.codec import Codec, Layout

__all__ = ["Codec", "Layout"]

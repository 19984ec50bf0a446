"""How tensors become bytes: one codec a file."""

from fedadapt.codecs.chain import make_codec
from fedadapt.codecs.codec import Codec, Key, Layout

__all__ = ["Codec", "Key", "Layout", "make_codec"]

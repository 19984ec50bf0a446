"""Codecs by their names: ``rotate > int4(block=64) > zstd``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from fedadapt.codecs.codec import Codec, chain, is_whole
from fedadapt.errors import ConfigError
from fedadapt.registry import create

_LINK = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")
_OPTION = re.compile(r"\s*(\w+)\s*=\s*([^,]+?)\s*")


def make_codec(text: str, options: Mapping[str, Any] | None = None) -> Codec:
    """The codec that a text names.

    Values go through the links from left to right; what no link packs is packed as ``float32``.

    Args:
        text: names of codecs joined by ``>``, each with options in parentheses or none.
        options: of the codec, if the text is one name; beside those in parentheses.

    Raises:
        ConfigError: a name or option is unknown, or the links do not fit.

    Example:
        >>> make_codec("topk(fraction=0.01) > int8 > zstd").name
        'topk(fraction=0.01) > int8(block=256, rounding=stochastic) > zstd(level=1)'
        >>> make_codec("int4", {"block": 64}).num_bytes({"w": torch.Size([640])})
        340
    """
    links = text.split(">")
    if options and len(links) > 1:
        raise ConfigError(
            f"codec {text!r} has several links, option {next(iter(options))!r} would be of none; "
            "write it in parentheses behind its link"
        )
    codecs: list[Codec] = []
    for link in links:
        match = _LINK.fullmatch(link)
        if match is None:
            raise ConfigError(
                f"codec {text!r}: {link.strip()!r} is no link; write name or name(option=value), joined by '>'"
            )
        codec: Codec = create("codec", match[1], _options(text, match[2] or "") | dict(options or {}))
        if not codec.stages and not any(is_whole(before) for before in codecs):
            codecs.append(create("codec", "float32"))
        codecs.append(codec)
    whole = chain(codecs)
    return whole if is_whole(whole) else chain([whole, create("codec", "float32")])


def _options(codec: str, text: str) -> dict[str, Any]:
    """Options as they stand in parentheses: values in TOML, and what is not TOML is text."""
    found: dict[str, Any] = {}
    for item in filter(str.strip, text.split(",")):
        match = _OPTION.fullmatch(item)
        if match is None:
            raise ConfigError(f"codec {codec!r}: {item.strip()!r} is no option; write option=value")
        try:
            found[match[1]] = tomllib.loads(f"value = {match[2]}")["value"]
        except tomllib.TOMLDecodeError:
            found[match[1]] = match[2]
    return found

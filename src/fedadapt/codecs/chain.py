"""Codecs by their names: ``rotate > int4(block=64) > zstd``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedadapt.codecs.codec import Codec, chain, is_whole
from fedadapt.errors import ConfigError
from fedadapt.registry import create

_LINK = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")
_OPTION = re.compile(r"\s*(\w+)\s*=\s*([^,]+?)\s*")


def make_codec(text: str, options: Mapping[str, Any] | None = None) -> Codec:
    """The codec that a text names.

    Values go through the links from left to right; what no link packs is packed as ``float32``. Behind ``@`` stand a
    round and the codec that packs from then on, for instance coarse steps first and fine ones later.

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
        >>> coarse_to_fine = make_codec("int2 @10 float16")
        >>> [coarse_to_fine.num_bytes({"w": torch.Size([256])}, round) for round in (9, 10)]
        [72, 512]
    """
    first, *parts = text.split("@")
    later = [_from_a_round(text, part, options) for part in parts]
    rounds = [1, *(begin for begin, _ in later)]
    if rounds != sorted(set(rounds)):
        raise ConfigError(f"codec {text!r}: rounds behind '@' are {rounds[1:]}; they must rise, from 2 on")
    return replace(_chain(first, options), later=tuple(later))


def _from_a_round(text: str, part: str, options: Mapping[str, Any] | None) -> tuple[int, Codec]:
    number, _, name = part.strip().partition(" ")
    if options or not number.isdecimal() or not name.strip():
        raise ConfigError(
            f"codec {text!r}: behind '@' stand a round and a codec, for instance 'int2 @10 int8'; options in parentheses"
        )
    return int(number), _chain(name, None)


def _chain(text: str, options: Mapping[str, Any] | None) -> Codec:
    """The codec of a text without rounds."""
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

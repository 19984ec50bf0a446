"""What a codec is: a chain of stages between tensors and bytes, seeded alike at both ends, of known size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedadapt.errors import ConfigError, FrameError
from fedadapt.params import Params, as_vector, from_vector, is_finite
from fedadapt.seeds import Seeds

Layout = Mapping[str, torch.Size]
"""Names and shapes of the tensors of a section, in the order they are packed."""

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
"""The values of a section, one tensor after the other."""

_ALL = "values"
"""The name of all values together, where stages do not look at single tensors."""


@dataclass(frozen=True)
class Key:
    """What both ends of a message know without sending it: the source of a codec's randomness.

    Args:
        seeds: of the run, shared at joining.
        purpose: what is packed: direction, stream and group.
        round: of the message.
        client: who sends or gets it; -1 for what is the same for all.
    """

    seeds: Seeds
    purpose: str
    round: int = 0
    client: int = -1

    def noise(self, stage: str) -> np.random.Generator:
        """Randomness that the sender alone needs: it may differ between versions of numpy."""
        return self.seeds.numpy(f"codec/{self.purpose}/{stage}", round=self.round, client=self.client)

    def words(self, stage: str, count: int, *, of_run: bool = False) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """`count` random 64-bit words that both ends draw alike, with any version of numpy.

        Args:
            stage: what for.
            count: how many.
            of_run: the same words for every round and client.
        """
        round, client = (0, -1) if of_run else (self.round, self.client)
        seed = self.seeds.derive(f"codec/{self.purpose}/{stage}", round=round, client=client)
        return np.random.PCG64(seed).random_raw(count)


@dataclass(frozen=True)
class Law:
    """What an encoding may lose: ``|back - x| <= error * |x| + floor * sqrt(n)``, Euclidean, n values.

    Args:
        error: largest share of the norm that is lost; 0 for none, infinity if nothing is promised.
        floor: besides, what a value may lose by being too small to tell from zero.
        unbiased: whether the mean over all seeds is what was encoded.
        gain: by how much the decoding may enlarge what later stages lose.
        loss: largest share of the squared norm that is lost in the mean over all seeds. If it is over 1, feeding
            the loss back makes it grow from message to message.
        even_loss: the same of values that a rotation has made even; None if that changes nothing.
        evens: whether the stage is such a rotation.
        magnifies: by how much the decoding may enlarge the share of the squared norm that later stages lose.
    """

    error: float = 0.0
    floor: float = 0.0
    unbiased: bool = True
    gain: float = 1.0
    loss: float = 0.0
    even_loss: float | None = None
    evens: bool = False
    magnifies: float = 1.0

    def then(self, later: Law) -> Law:
        """The law of this stage and a later one together."""
        if later == Law():
            return self
        lost = later.even_loss if self.evens and later.even_loss is not None else later.loss
        lost = self.magnifies * lost
        # What is kept is all in the mean, and more of it if it is enlarged; or it is what the loss has left.
        loss = (
            self.loss + (1 + self.loss) * lost
            if self.unbiased
            else max(lost, self.loss + (1 - self.loss) * lost)
        )
        return Law(
            self.error + (self.gain * later.error * (1 + self.error) if later.error else 0.0),
            self.floor + (self.gain * later.floor if later.floor else 0.0),
            self.unbiased and later.unbiased,
            self.gain * later.gain,
            loss,
            magnifies=self.magnifies * later.magnifies,
        )

    def or_worse(self, other: Law) -> Law:
        """What is lost at the most, where it is this law or another one."""
        return Law(
            max(self.error, other.error),
            max(self.floor, other.floor),
            self.unbiased and other.unbiased,
            max(self.gain, other.gain),
            max(self.loss, other.loss),
            magnifies=max(self.magnifies, other.magnifies),
        )

    @property
    def exact(self) -> bool:
        """Whether every value comes back bit for bit."""
        return self.error == self.floor == 0


@dataclass(frozen=True)
class Stage:
    """One step of a codec: it turns values into parts of bytes, and hands on the values that are left.

    Args:
        name: with every option that changes the bytes.
        encode: ``(params, key) -> (params handed on, parts)``.
        decode: ``(params handed back, parts, layout, key) -> params``; the parts have the right sizes.
        rest: ``(layout) -> layout`` of the values handed on; empty if none are left.
        sizes: ``(layout) -> bytes`` of each part, exactly.
        law: what the step loses.
        by_tensor: whether it looks at single tensors; if no stage of a codec does, all are given one vector.
    """

    name: str
    encode: Callable[[Params, Key], tuple[Params, tuple[bytes, ...]]]
    decode: Callable[[Params, Sequence[bytes], Layout, Key], Params]
    rest: Callable[[Layout], Layout]
    sizes: Callable[[Layout], tuple[int, ...]]
    law: Law
    by_tensor: bool = False


@dataclass(frozen=True)
class Coder:
    """The last step of a codec: bytes into fewer bytes, without loss.

    Args:
        name: with every option that changes the bytes.
        shrink: ``(parts) -> bytes``, at most 4 a part more than there were.
        expand: ``(bytes, sizes) -> parts`` of these sizes; raises `FrameError` otherwise.
    """

    name: str
    shrink: Callable[[Sequence[bytes]], bytes]
    expand: Callable[[bytes, Sequence[int]], list[bytes]]


@dataclass(frozen=True)
class Codec:
    """How the tensors of one section are packed: stages one after the other, then perhaps a coder.

    Args:
        stages: from tensors to bytes; the last leaves no values.
        coder: shrinks the bytes; None to leave them.
        later: the codecs that take its place, each from a round on; the rounds rise.
    """

    stages: tuple[Stage, ...]
    coder: Coder | None = None
    later: tuple[tuple[int, Codec], ...] = ()

    def at(self, round: int) -> Codec:
        """What packs the messages of a round."""
        begun = [codec for first, codec in self.later if first <= round]
        return begun[-1] if begun else replace(self, later=())

    def until(self, round: int) -> Codec:
        """Without what would come after a round."""
        return replace(self, later=tuple(one for one in self.later if one[0] <= round))

    @property
    def name(self) -> str:
        """The links of the chain with their options, and what comes later; both ends must have the same."""
        names = [stage.name for stage in self.stages] + ([self.coder.name] if self.coder else [])
        return " > ".join(names) + "".join(f" @{first} {codec.name}" for first, codec in self.later)

    @property
    def digest(self) -> bytes:
        """8 bytes that stand for the name in a frame."""
        return hashlib.blake2b(self.name.encode(), digest_size=8).digest()

    @property
    def law(self) -> Law:
        """What the whole chain loses; in the worst of its rounds."""
        law = Law()
        for stage in reversed(self.stages):
            law = stage.law.then(law)
        for _, codec in self.later:
            law = law.or_worse(codec.law)
        return law

    def encode(self, params: Params, key: Key) -> bytes:
        """Packs the tensors of a section.

        Raises:
            FrameError: a value is infinite, NaN or too large, and the codec cannot carry it.
        """
        if self.later:
            return self.at(key.round).encode(params, key)
        if not self.law.exact and not is_finite(params):
            raise FrameError(f"codec {self.name!r} was given infinite or NaN values; it takes finite ones")
        parts: list[bytes] = []
        if not self._by_tensor:
            params = {_ALL: as_vector(params)}
        with np.errstate(all="ignore"):
            for stage in self.stages:
                params, made = stage.encode(params, key)
                parts += made
        return self.coder.shrink(parts) if self.coder else b"".join(parts)

    def decode(self, data: bytes, layout: Layout, key: Key) -> Params:
        """The tensors of a section, in fp32, as memory of their own; arguments as those of `values`."""
        return from_vector(self.values(data, layout, key), layout)

    def values(self, data: bytes, layout: Layout, key: Key) -> Float[Tensor, " P"]:
        """All values of a section in the order of its layout, in fp32, as memory of their own.

        Whatever the bytes are, this takes memory by the layout and not by what the bytes claim.

        Raises:
            FrameError: the bytes do not fit the layout.
        """
        if self.later:
            return self.at(key.round).values(data, layout, key)
        layouts, sizes = self._walk(layout)
        parts = iter(self.coder.expand(data, sizes) if self.coder else split(data, sizes))
        shares = [
            [next(parts) for _ in stage.sizes(own)] for stage, own in zip(self.stages, layouts, strict=True)
        ]
        params: Params = {}
        with np.errstate(all="ignore"):
            for stage, own, share in reversed(list(zip(self.stages, layouts, shares, strict=True))):
                params = stage.decode(params, share, own, key)
        return as_vector(params)

    def num_bytes(self, layout: Layout, round: int = 1) -> int | None:
        """The bytes of a section in a round, exactly; None if they depend on the values."""
        if self.later:
            return self.at(round).num_bytes(layout)
        return None if self.coder else sum(self._walk(layout)[1])

    def most_bytes(self, layout: Layout) -> int:
        """The bytes of a section at the most, in any round."""
        _, sizes = self._walk(layout)
        behind = 4 * len(sizes) if self.coder else 0
        return max([sum(sizes) + behind, *(codec.most_bytes(layout) for _, codec in self.later)])

    @property
    def _by_tensor(self) -> bool:
        return any(stage.by_tensor for stage in self.stages)

    def _walk(self, layout: Layout) -> tuple[list[Layout], list[int]]:
        """The layout that each stage is given, and the size of every part."""
        layouts: list[Layout] = []
        sizes: list[int] = []
        if not self._by_tensor:
            layout = flat(count(layout))
        for stage in self.stages:
            layouts.append(layout)
            sizes += stage.sizes(layout)
            layout = stage.rest(layout)
        return layouts, sizes


def split(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Bytes cut into parts of these sizes.

    Raises:
        FrameError: there are more or fewer.
    """
    if len(data) != sum(sizes):
        raise FrameError(f"section has {len(data)} bytes, its layout needs {sum(sizes)}")
    parts, begin = [], 0
    for size in sizes:
        parts.append(data[begin : begin + size])
        begin += size
    return parts


def chain(codecs: Sequence[Codec]) -> Codec:
    """Several codecs as one: each packs what the one before hands on.

    Raises:
        ConfigError: one comes after another that leaves nothing to pack.
    """
    stages: list[Stage] = []
    coder: Coder | None = None
    for codec in codecs:
        closed = coder or (stages and codec.stages and not stages[-1].rest(flat(1)))
        if closed:
            last = coder.name if coder else stages[-1].name
            raise ConfigError(
                f"codec {codec.name!r} cannot come after {last!r}, which leaves nothing to pack"
            )
        stages += codec.stages
        coder = codec.coder
    return Codec(tuple(stages), coder)


def is_whole(codec: Codec) -> bool:
    """Whether the stages end in bytes, with no values left over."""
    return bool(codec.stages) and not codec.stages[-1].rest(flat(1))


def flat(count: int) -> Layout:
    """The layout of a vector."""
    return {_ALL: torch.Size([count])}


def count(layout: Layout) -> int:
    """How many values a section has."""
    return sum(map(torch.Size.numel, layout.values()))


def flatten(params: Params, multiple: int = 1) -> Vector:
    """The values of all tensors in order, as a copy, with zeros up to a multiple of `multiple`."""
    total = sum(tensor.numel() for tensor in params.values())
    values = np.zeros(-(-total // multiple) * multiple, dtype=np.float32)
    if total:
        torch.from_numpy(values[:total]).copy_(as_vector(params).detach())
    return values


def unflatten(values: Vector, layout: Layout) -> Params:
    """A vector cut into the tensors of a layout; what is longer is left out."""
    return from_vector(
        torch.from_numpy(np.ascontiguousarray(values[: count(layout)], dtype=np.float32)), layout
    )


def nothing(layout: Layout) -> Layout:
    """The rest of a stage that packs all."""
    del layout
    return {}

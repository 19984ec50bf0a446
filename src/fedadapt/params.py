"""The nouns of arithmetic: `Params`, a mapping from tensor names to tensors in a fixed order.

Everything that is trained, exchanged, averaged or kept is `Params`. A *stacked* `Params` holds several clients:
every tensor has a leading client axis of the same length K. `Streams` are several named `Params` that belong
together, such as a model and its control variates, or the whole state of a server.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedadapt.errors import RunError
from fedadapt.files import from_json

Params = dict[str, Tensor]
"""Tensors by name; the order of insertion is part of the value."""

Streams = dict[str, Params]
"""Several `Params` by what they are for, for instance ``{"model": ..., "momentum": ...}``."""


class Group(StrEnum):
    """What a tensor of a model is, by the type of the module that owns it. Every tensor is in one group."""

    ADAPTER = "adapter"
    NORM_AFFINE = "norm_affine"
    NORM_STATISTICS = "norm_statistics"
    HEAD = "head"
    BACKBONE = "backbone"


def zeros_like(params: Params) -> Params:
    """Zeros of the same names and shapes."""
    return {name: torch.zeros_like(tensor) for name, tensor in params.items()}


def add(a: Params, b: Params, *, alpha: float = 1.0) -> Params:
    """``a + alpha * b`` by name.

    Example:
        >>> add({"w": torch.ones(2)}, {"w": torch.ones(2)}, alpha=-0.5)
        {'w': tensor([0.5000, 0.5000])}
    """
    return {name: torch.add(tensor, b[name], alpha=alpha) for name, tensor in a.items()}


def scale(params: Params, factor: float) -> Params:
    """Every tensor times `factor`."""
    return {name: tensor * factor for name, tensor in params.items()}


def weighted_mean(items: Iterable[tuple[float, Params]]) -> Params:
    """The mean of several `Params`, weighted; the weights need not sum to one.

    Sums in float64 in the order given, one item in memory at a time, so the result does not depend on how a
    cohort was split as long as the order is the same.

    Args:
        items: pairs of a weight >= 0 and a `Params`, all of one type; at least one weight is positive.

    Raises:
        ValueError: no weight is positive.

    Example:
        >>> weighted_mean([(1.0, {"w": torch.zeros(1)}), (3.0, {"w": torch.ones(1)})])
        {'w': tensor([0.7500])}
    """
    total = 0.0
    layout: dict[str, torch.Size] = {}
    sums, dtype = torch.zeros(0, dtype=torch.float64), torch.float32
    for weight, params in items:
        total += weight
        if layout:
            sums.add_(as_vector({name: params[name] for name in layout}), alpha=weight)
        else:
            layout, dtype = shapes(params), as_vector(params).dtype
            sums = as_vector(params).double() * weight
    if total <= 0:
        raise ValueError("a weighted mean needs at least one positive weight")
    return from_vector((sums / total).to(dtype), layout)


def norm(params: Params) -> float:
    """The Euclidean norm of all values together, which are floating-point numbers."""
    return float(torch.linalg.vector_norm(as_vector(params), dtype=torch.float64))


def num_values(params: Params) -> int:
    """How many numbers there are."""
    return sum(tensor.numel() for tensor in params.values())


def num_bytes(params: Params) -> int:
    """How many bytes the tensors take, packed."""
    return sum(tensor.numel() * tensor.element_size() for tensor in params.values())


def is_finite(params: Params) -> bool:
    """Whether no value is infinite or NaN."""
    return all_finite(as_vector(params))


def all_finite(values: Shaped[Tensor, " P"]) -> bool:
    """Whether none of them is infinite or NaN."""
    return not len(values) or all(map(math.isfinite, torch.stack(torch.aminmax(values)).tolist()))


def as_vector(params: Params) -> Shaped[Tensor, " P"]:
    """All values one after the other, to read: a view where they lie so in memory, otherwise a copy.

    Example:
        >>> as_vector({"w": torch.ones(1, 2), "b": torch.zeros(1)})
        tensor([1., 1., 0.])
    """
    tensors = list(params.values())
    if not tensors:
        return torch.zeros(0)
    first, dtype = tensors[0], tensors[0].dtype
    begin = place = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != place or tensor.dtype != dtype or not tensor.is_contiguous():
            break
        place += tensor.nbytes
    else:
        # Memory of another tensor may happen to begin where this one's ends.
        if place <= first.untyped_storage().data_ptr() + first.untyped_storage().nbytes():
            return first.as_strided(((place - begin) // first.itemsize,), (1,), first.storage_offset())
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def from_vector(values: Shaped[Tensor, " P"], layout: Mapping[str, torch.Size]) -> Params:
    """The tensors of these names and shapes that lie one after the other in `values`, as views."""
    pieces = values.split([shape.numel() for shape in layout.values()]) if layout else ()
    return {
        # A view costs as much as all else here, and a vector is one already.
        name: piece if len(shape) == 1 else piece.view(shape)
        for (name, shape), piece in zip(layout.items(), pieces, strict=True)
    }


def shapes(params: Params) -> dict[str, torch.Size]:
    """The names and shapes."""
    return {name: tensor.shape for name, tensor in params.items()}


def stack(items: Sequence[Params]) -> Params:
    """Several clients' `Params` along a new leading client axis."""
    return {name: torch.stack([params[name] for params in items]) for name in items[0]}


def expand(params: Params, clients: int) -> Params:
    """One `Params` repeated along a new leading client axis, as memory of its own."""
    return {name: tensor.expand(clients, *tensor.shape).clone() for name, tensor in params.items()}


def as_rows(stacked: Params) -> Float[Tensor, "K P"]:
    """All values of several clients as one matrix, a client in each row, as memory of its own.

    Example:
        >>> as_rows({"w": torch.ones(2, 1, 2), "b": torch.zeros(2)})
        tensor([[1., 1., 0.],
                [1., 1., 0.]])
    """
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in stacked.values()], dim=1)


def laid_out(stacked: Params) -> Params:
    """The same values, those of each client one after the other in memory."""
    return from_rows(as_rows(stacked), stacked)


def from_rows(rows: Float[Tensor, "K P"], like: Params) -> Params:
    """The tensors that `as_rows` laid into `rows`, as views, with the names and shapes of `like`."""
    sizes = [tensor[0].numel() for tensor in like.values()]
    parts = rows.split(sizes, dim=1)
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}


def pick(stacked: Params, client: int) -> Params:
    """The `Params` of one place on the client axis, as views."""
    return {name: tensor[client] for name, tensor in stacked.items()}


def to_bytes(streams: Streams) -> bytes:
    """All streams as one safetensors document; `from_bytes` gives them back bit for bit."""
    flat = {
        f"{index:06d}/{stream}/{name}": tensor.detach().cpu().contiguous()
        for index, (stream, name, tensor) in enumerate(
            (stream, name, tensor) for stream, params in streams.items() for name, tensor in params.items()
        )
    }
    return save(flat, metadata={"streams": "\n".join(streams)})


def from_bytes(document: bytes) -> Streams:
    """The streams that `to_bytes` wrote, in their order. An empty stream comes back empty.

    Raises:
        RunError: `document` is not such a document.
    """
    try:
        flat = load(document)
        header = int.from_bytes(document[:8], "little")
        named = _stream_names(document[8 : 8 + header])
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"stored tensors are damaged ({error}); restore the file from a copy") from error
    streams: Streams = {stream: {} for stream in named}
    for key in sorted(flat):
        _, stream, name = key.split("/", 2)
        streams[stream][name] = flat[key]
    return streams


def _stream_names(header: bytes) -> list[str]:
    joined = from_json(header)["__metadata__"]["streams"]
    return joined.split("\n") if joined else []

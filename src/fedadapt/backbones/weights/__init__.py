"""Weight files: what one holds, how it is checked, and those that come with the package."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedadapt.backbones.rounding import Rounding, unpack
from fedadapt.errors import BackboneError
from fedadapt.files import from_json, write_whole

Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the training pixels (0..1), by channel."""


def shipped() -> list[str]:
    """Names of the weight files in the package, such as ``resnet26-tiny-imagenet-32``."""
    files = resources.files(__package__).iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".safetensors"))


def locate(weights: str) -> Path:
    """The file that `weights` means: a path, or the name of a shipped file.

    Raises:
        BackboneError: there is no such file, or it is of a kind that could run code when it is read.
    """
    if weights in shipped():
        return Path(str(resources.files(__package__) / f"{weights}.safetensors"))
    path = Path(weights)
    if path.suffix != ".safetensors":
        raise BackboneError(
            f"weights must be a .safetensors file or one of {', '.join(shipped()) or '(none shipped)'}, got {weights!r}; "
            "convert other formats first, reading a pickle can run any code"
        )
    if not path.is_file():
        raise BackboneError(f"no weight file at {path}")
    return path


def load_weights(module: nn.Module, path: Path, head: str) -> Moments | None:
    """Copies the tensors of a weight file into `module`, all but the head's, and returns the pixel moments.

    Every tensor of `module` must be in the file with its shape, and nothing else may be.

    Raises:
        BackboneError: the file is damaged, or belongs to another network.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            stored = unpack({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"weight file {path} cannot be read ({error}); fetch it again") from error
    state = module.state_dict()
    wanted = {n for n in state if not n.startswith(f"{head}.") and not n.endswith("num_batches_tracked")}
    given = {n for n in stored if not n.startswith(f"{head}.") and not n.endswith("num_batches_tracked")}
    if wanted != given:
        odd = sorted(wanted ^ given)
        raise BackboneError(
            f"weight file {path} is of another network: {len(wanted - given)} tensors are missing and "
            f"{len(given - wanted)} unknown, for instance {odd[0]!r}"
        )
    for name in sorted(wanted):
        if stored[name].shape != state[name].shape:
            raise BackboneError(
                f"weight file {path} has {name!r} with shape {tuple(stored[name].shape)}, "
                f"the network needs {tuple(state[name].shape)}"
            )
        if stored[name].dtype is torch.int8 and state[name].is_floating_point():
            raise BackboneError(
                f"weight file {path} has integers of {name!r} without exponents; fetch it again"
            )
        state[name].copy_(stored[name])
    if "mean" not in metadata:
        return None
    try:
        mean, std = (tuple(float(value) for value in from_json(metadata[key])) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"weight file {path} has damaged pixel moments ({error}); fetch it again"
        ) from error
    if len(mean) != len(std) or not all(map(math.isfinite, (*mean, *std))) or min(std, default=0.0) <= 0:
        raise BackboneError(
            f"weight file {path} has pixel moments that none have, {mean} and {std}; fetch it again"
        )
    return mean, std


def save_weights(
    module: nn.Module,
    path: Path,
    metadata: dict[str, Any],
    pack: Callable[[str, Tensor], Mapping[str, Tensor]] = Rounding.FLOAT32.pack,
) -> None:
    """Writes every tensor of `module` as `pack` makes it, with `metadata` as JSON values; replaces atomically."""
    tensors = {
        name: packed.contiguous()
        for whole, tensor in module.state_dict().items()
        if not whole.endswith("num_batches_tracked")
        for name, packed in pack(whole, tensor.detach().cpu()).items()
    }
    write_whole(path, save(tensors, metadata={key: json.dumps(value) for key, value in metadata.items()}))

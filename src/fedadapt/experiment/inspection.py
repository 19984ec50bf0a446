"""What a file is that fedadapt wrote or could read: found out from its content, without running any of it."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedadapt.adapters.peft import CONFIG, read_peft
from fedadapt.adapters.store import read_manifest
from fedadapt.errors import AttachError
from fedadapt.experiment.export import METADATA
from fedadapt.files import from_json

MAX_JSON_BYTES = 2**20
"""Of what a graph file says about itself."""


def inspect(path: Path) -> dict[str, Any]:
    """What `path` says of itself, as plain JSON values.

    Returns:
        ``kind``: ``"adapter"``, ``"network"``, ``"torch program"``, ``"onnx graph"`` or ``"peft adapter"``; besides
        the manifest, metadata or configuration that it holds; for networks ``tensors`` and ``values``, how many.

    Raises:
        AttachError: it is none of these, or damaged.
    """
    if path.is_dir() and (path / CONFIG).exists():
        return {**read_peft(path), "kind": "peft adapter"}
    if zipfile.is_zipfile(path):
        try:
            return {**_program(path), "kind": "torch program"}
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise AttachError(
                f"{path} is an archive, but a damaged one ({type(error).__name__}: {error}); write or copy it again"
            ) from error
    if path.suffix == ".onnx":
        return {**_graph(path), "kind": "onnx graph"}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        if _may_be_graph(path):
            return {**_graph(path), "kind": "onnx graph"}
        raise AttachError(
            f"{path} is no adapter, network, program, graph or PEFT folder ({type(error).__name__}: {error})"
        ) from error
    if "manifest" in metadata:
        return {**read_manifest(path), "kind": "adapter"}
    values = sum(math.prod(shape) for shape in shapes)
    return {**_said(metadata), "kind": "network", "tensors": len(shapes), "values": values}


def _may_be_graph(path: Path) -> bool:
    """Whether a file of any name starts as ONNX's protocol buffers do: with field 1, a number."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\x08"
    except OSError:
        return False


def _said(metadata: dict[str, str]) -> dict[str, Any]:
    """Metadata of a weight file, whose values are JSON if we wrote them."""
    found: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            found[key] = from_json(text)
        except ValueError:
            found[key] = text
    return found


def _program(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        own = next((name for name in names if name.rpartition("/")[2] == METADATA), None)
        if own is None:
            if not any(
                "/models/" in name or name.endswith("serialized_exported_program.json") for name in names
            ):
                raise AttachError(f"{path} is an archive, but holds no program of torch.export")
            return {}
        with archive.open(own) as file:
            return _parsed(path, file.read(MAX_JSON_BYTES))


def _graph(path: Path) -> dict[str, Any]:
    try:
        import onnx
    except ImportError as error:
        raise AttachError(
            f"{path} looks like ONNX, which takes a package to read; run: pip install 'fedadapt[onnx]'"
        ) from error
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AttachError(f"{path} is no readable ONNX graph ({reason})") from error
    own = next((entry.value for entry in model.metadata_props if entry.key == METADATA), None)
    found = {} if own is None else _parsed(path, own.encode())
    opset = next((entry.version for entry in model.opset_import if not entry.domain), None)
    return {**found, "opset": opset, "nodes": len(model.graph.node)}


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        found = from_json(text)
    except ValueError as error:
        raise AttachError(f"what {path} says of itself is damaged ({error}); write it again") from error
    if not isinstance(found, dict):
        raise AttachError(
            f"what {path} says of itself is no table, but {type(found).__name__}; write it again"
        )
    return found

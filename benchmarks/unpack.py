"""Turns the compressed image sets that benchmarks and studies use into plain ``.npz`` files.

``python benchmarks/unpack.py FROM TO [NAME ...]`` reads ``FROM/NAME.npz`` (members are LZMA-compressed; colour
images are stored as differences, ``NAME__delta``, or as JPEG streams, ``NAME__jpeg``) and writes ``TO/NAME.npz``
with ``x_train``, ``y_train``, ``x_test``, ``y_test`` and ``class_names``. ``NAME_more.npz``, where it is there,
is joined to it: more train images; its test images become ``x_val``.
"""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image


def undelta(coded: np.ndarray) -> np.ndarray:
    """uint8 differences ``[N, 3, H, W]`` to images ``[N, H, W, 3]``, exactly."""
    planes = np.cumsum(np.cumsum(coded, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    green = planes[:, 0]
    return np.stack([planes[:, 1] + green, green, planes[:, 2] + green], axis=-1)


def unjpeg(header: bytes, body: bytes, offsets: np.ndarray) -> np.ndarray:
    """Concatenated JPEG scans that share one header, to images ``[N, H, W, 3]``."""
    scans = [body[begin:end] for begin, end in pairwise(offsets)]
    return np.stack([np.asarray(Image.open(io.BytesIO(header + scan))) for scan in scans])


def load(path: Path) -> dict[str, np.ndarray]:
    """The plain arrays of one compressed set."""
    packed = np.load(path)
    arrays = {}
    for key in packed.files:
        if key.endswith("__delta"):
            arrays[key.removesuffix("__delta")] = undelta(packed[key])
        elif key.endswith("__jpeg"):
            name = key.removesuffix("__jpeg")
            header, body = packed["jpeg_header"].tobytes(), packed[key].tobytes()
            arrays[name] = unjpeg(header, body, packed[f"{name}__offsets"])
        elif not key.endswith("__offsets") and key != "jpeg_header":
            arrays[key] = packed[key]
    return arrays


def main(source: Path, target: Path, names: list[str]) -> None:
    """Unpacks the sets called `names`, or all."""
    target.mkdir(parents=True, exist_ok=True)
    paths = [p for p in sorted(source.glob("*.npz")) if not p.stem.endswith("_more")]
    for path in paths:
        if path.stem.startswith("weights_") or (names and path.stem not in names):
            continue
        arrays = load(path)
        more_path = path.with_name(f"{path.stem}_more.npz")
        if more_path.exists():
            more = load(more_path)
            for key in ("x_train", "y_train"):
                arrays[key] = np.concatenate([arrays[key], more[key]])
            if "x_test" in more:
                arrays["x_val"], arrays["y_val"] = more["x_test"], more["y_test"]
        np.savez(target / path.name, **arrays)
        print(path.stem, {k: v.shape for k, v in arrays.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

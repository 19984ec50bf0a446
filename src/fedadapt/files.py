"""Files: written whole or not at all, and texts from them that may be anything."""

from __future__ import annotations

import errno
import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedadapt.errors import ConfigError


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text that may come from anywhere.

    Raises:
        ValueError: it is none, or is nested so deep that it cannot be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file that takes its place once the block has written it, whatever happens meanwhile.

    When the block ends the new file is on the disk, name and all; when it fails nothing is left of it, and the old file,
    if any, is untouched.

    Raises:
        OSError: it cannot be written. Only where the folder cannot be brought to the disk is the new file there already,
            for a power cut to take.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        yield part
        _keep(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    keep_names(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader finds the old file or the new one; see `whole`."""
    with whole(path) as part:
        part.write_bytes(data)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML document; `what` is what the file is called in an error.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path} is not TOML: {error}") from error


def keep_names(folder: Path) -> None:
    """Brings the names in a folder to the disk: a file that was renamed keeps its new name through a power cut.

    Some network file systems cannot do it for a folder, and are taken at their word.
    """
    try:
        _keep(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _keep(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

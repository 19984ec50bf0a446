"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text that may come from anywhere.

    Raises:
        ValueError: it is none, or is nested so deep that it cannot be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader finds the old file or the new one, whatever happens meanwhile.

    When it returns the new one is on the disk, name and all.

    Raises:
        OSError: it cannot be written; nothing is left beside it, and the old file, if any, is untouched. Only where the
            folder cannot be brought to the disk is the new one there already, for a power cut to take.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
    keep_names(path.parent)


def keep_names(folder: Path) -> None:
    """Brings the names in a folder to the disk: a file that was renamed keeps its new name through a power cut.

    Some network file systems cannot do it for a folder, and are taken at their word.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)

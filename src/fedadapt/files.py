"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader finds the old file or the new one, whatever happens meanwhile.

    When it returns the new one is on the disk, name and all.

    Raises:
        OSError: it cannot be written; the old file, if any, is untouched and nothing is left beside it.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        keep_names(path.parent)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def keep_names(folder: Path) -> None:
    """Brings the names in a folder to the disk: a file that was renamed keeps its new name through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

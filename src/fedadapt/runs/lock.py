"""The lock that keeps a run directory to one writer."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedadapt.errors import RunError

LOCK = "lock"


def acquire(folder: Path) -> int:
    """Takes the lock of a run directory without waiting.

    The system gives it back when the descriptor is closed, at the latest when the process ends, however it
    ends. The lock file itself stays for good: removing it would race with whoever takes the lock next.

    Returns:
        The descriptor to close.

    Raises:
        RunError: another process, or another store in this one, has it.
        OSError: the lock file cannot be made.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace") or "unknown"
        os.close(lock)
        raise RunError(
            f"run directory {folder} is in use by process {holder}; wait for it to end, or choose another one"
        ) from None
    except OSError:
        os.close(lock)
        raise
    return lock

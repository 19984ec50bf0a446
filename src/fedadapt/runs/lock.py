"""The lock that keeps a run directory to one writer."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from fedadapt.errors import RunInUse

LOCK = "lock"

_PAUSES_S = (0.01, 0.05, 0.1)
"""Before the lock is tried again: somebody may only be looking whether it is held."""


def acquire(folder: Path) -> int:
    """Takes the lock of a run directory, or finds within a moment that another has it.

    The system gives it back when the descriptor is closed, at the latest when the process ends, however it
    ends. The lock file itself stays for good: removing it would race with whoever takes the lock next.

    Returns:
        The descriptor to close.

    Raises:
        RunInUse: another process, or another store in this one, has it.
        OSError: the lock file cannot be made.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(lock)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace") or "unknown"
        os.close(lock)
        raise RunInUse(
            f"directory {folder} is in use by process {holder}; wait for it to end, or choose another one"
        ) from None
    except OSError:
        os.close(lock)
        raise
    return lock


def is_held(folder: Path) -> bool:
    """Whether some process writes to a run directory, or is about to.

    It tries a shared lock and gives it back at once, which `acquire` waits out. The kernel's list of locks would
    tell without trying, but not to a process in another container.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _take(lock: int) -> None:
    for pause in _PAUSES_S:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        else:
            return
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

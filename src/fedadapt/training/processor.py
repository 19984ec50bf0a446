"""How a process that trains should treat numbers next to zero, and memory that it has let go of."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

KEPT_BYTES, OLD_KEPT_BYTES = 2**30, 2**25
"""Freed memory that a process keeps for the next tensor; larger blocks go back to the system at once. And the most
that old C libraries take for the size of a block."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@contextmanager
def tuned_processor(threads: int | None = None) -> Iterator[None]:
    """Takes denormal numbers for zero within the block, and has the process keep the memory that tensors free.

    Args:
        threads: to compute with in the block, where the machine has as many cores; None leaves them as they are. Sums
            of large tensors differ in their last bits between numbers of threads.

    Momenta that fade away are full of denormals, which processors are slow at. The mode is switched off afterwards:
    torch does not tell what it was before, and off is what it starts with. It is the calling thread's, and that of
    threads that torch starts within the block; a process that has used many threads before may compute other last
    bits than a fresh one.

    Memory stays kept for the life of the process, where its C library has a way to say so (glibc). Otherwise every
    map of every step would be pages that the system has to clear first.
    """
    _keep_freed_memory()
    before = torch.get_num_threads()
    if threads and threads <= cores():
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def cores() -> int:
    """Processor cores that this process may use, by its affinity and by the quota of its control group.

    Example:
        >>> cores() >= 1
        True
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        usable = min(usable, max(1, int(quota) // int(period)))
    return usable


@cache
def _keep_freed_memory() -> bool:
    """Whether the allocator could be told."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # The first setting that is taken ends the library's own adaptation, so the size of blocks has to be it.
    blocks = any(mallopt(_M_MMAP_THRESHOLD, size) for size in (KEPT_BYTES, OLD_KEPT_BYTES))
    return bool(blocks and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))

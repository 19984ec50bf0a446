"""Numbers next to zero, which processors are slow at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Takes denormal numbers for zero within the block; momenta that fade away are full of them.

    Switches the mode off afterwards: torch does not tell what it was before, and off is what it starts with. The mode
    is the calling thread's, and of threads that torch starts within the block; a process that has used many threads
    before may compute other last bits than a fresh one.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)

"""What the machine has: cores, memory and GPUs that a study may use."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

GIBIBYTE = 2**30
FIRST_NEED_BYTES = 2 * GIBIBYTE
"""What a cell is taken to need before any was measured."""

SPARE = 1.1
"""Cells of a study differ; the next one is given so many times what the largest needed so far."""

GPU_CONTEXT_BYTES = GIBIBYTE
"""What a process takes of a GPU beside what torch reserves."""


@dataclass(frozen=True)
class Need:
    """Memory that a process took at its peak.

    Args:
        memory_bytes: of the machine.
        gpu_bytes: of its GPU; 0 without one.
    """

    memory_bytes: int = 0
    gpu_bytes: int = 0


@dataclass
class Room:
    """Decides whether one more process fits, by what earlier ones took.

    Args:
        gpus: memory of each GPU, in bytes; none where cells run on processors.
        largest: the most that any process took; None until one was measured.
    """

    gpus: list[int]
    largest: Need | None = None

    def measured(self, need: Need) -> None:
        """Takes note of what a process took."""
        before = self.largest or Need()
        self.largest = Need(
            max(before.memory_bytes, need.memory_bytes), max(before.gpu_bytes, need.gpu_bytes)
        )

    def fits(self, running: list[tuple[int, int]]) -> int | None:
        """The GPU (0 without any) that has room for one more process; None if nothing has.

        Args:
            running: process id and GPU of each process that is there already.
        """
        if not running:
            return 0
        need = FIRST_NEED_BYTES if self.largest is None else int(SPARE * self.largest.memory_bytes)
        available = available_bytes()
        if available is not None:
            # What is running may still grow to what others took.
            growing = sum(max(0, need - resident_bytes(process)) for process, _ in running)
            if available - growing < need:
                return None
        if not self.gpus:
            return 0
        on = [sum(gpu == number for _, gpu in running) for number in range(len(self.gpus))]
        number = min(range(len(on)), key=lambda gpu: on[gpu])
        if self.largest is None:
            return number if on[number] == 0 else None
        each = int(SPARE * self.largest.gpu_bytes) + GPU_CONTEXT_BYTES
        return number if (on[number] + 1) * each <= self.gpus[number] else None


def available_bytes() -> int | None:
    """Memory that new processes can have; None where the system does not say."""
    known = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, used = (
            int((group / f"memory.{what}").read_text(encoding="ascii")) for what in ("max", "current")
        )
        known.append(max(0, most - used))
    return min(known, default=None)


def resident_bytes(process: int) -> int:
    """Memory that a process has now; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def peak_bytes() -> int:
    """The most memory that this process has had."""
    with suppress(OSError, ValueError, StopIteration):
        # What getrusage tells begins at the peak of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    # Kibibytes, but for a Mac's bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gpu_bytes(device: str) -> list[int]:
    """The memory of each GPU that cells with this ``train.device`` run on."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    return [
        torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())
    ]

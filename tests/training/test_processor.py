"""What a process that trains does with denormals and with freed memory."""

import subprocess
import sys

import pytest
import torch

from fedadapt.training.processor import _keep_freed_memory, tuned_processor


def test_denormals_are_zero_within_the_block_only():
    """A number below the least normal one is taken for zero there, and is itself again afterwards."""
    small = torch.full((8,), 1e-40)
    with tuned_processor():
        assert (small * 0.5).eq(0).all()
    assert (small * 0.5).ne(0).all()


@pytest.mark.skipif(not _keep_freed_memory(), reason="the C library cannot be told to keep freed memory")
def test_freed_memory_is_used_again():
    """Forty tensors of 64 MiB, one after the other, do not each take fresh pages from the system."""
    script = """
import resource, torch
from fedadapt.training.processor import tuned_processor

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with tuned_processor():
    print(*(faults() for _ in range(40)))
"""
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    first, *later = map(int, said.split())
    # Alignment may keep a block from fitting where one of its size was, until there is a larger gap.
    assert sum(later) < 20 * first

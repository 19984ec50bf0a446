"""What tests and doctests share: checked shapes, one number of threads, and `torch` at hand in examples."""

from __future__ import annotations

import os

# How many threads share a sum decides its last bits, and golden numbers, of one thread, are compared bit for bit. Set in
# the environment too, and before torch is loaded, so that the processes that tests start do the same. `make test` runs
# what trains with two threads as well: there an engine has chunks of clients side by side.
THREADS = int(os.environ.get("FEDADAPT_TEST_THREADS", "1"))
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(THREADS)

from functools import wraps
from typing import Any

from jaxtyping import config, install_import_hook

# Before anything imports fedadapt, or its annotations would stay unchecked.
install_import_hook("fedadapt", "checked.checked")

import pytest
import torch
from torch import fx

torch.set_num_threads(THREADS)

_trace = fx.Tracer.trace


@wraps(_trace)
def _trace_unchecked(*arguments: Any, **options: Any) -> fx.Graph:
    """A tensor that is traced is none yet, so there is nothing to check."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        return _trace(*arguments, **options)
    finally:
        config.update("jaxtyping_disable", before)


fx.Tracer.trace = _trace_unchecked


@pytest.fixture(autouse=True)
def _torch_in_doctests(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch

"""Fine-tune one vision model across many parties and send almost nothing.

The backbone stays frozen on every party; small adapters beside its convolutions are trained, exchanged and
averaged. The names here are what a script needs; they are loaded on first use, so importing ``fedadapt`` is
cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedadapt.experiment import RunConfig, load_config, make_config, resume, run
    from fedadapt.report.gather import summarise
    from fedadapt.report.page import write_page

__all__ = ["RunConfig", "load_config", "make_config", "resume", "run", "summarise", "write_page"]

_HOMES = {"summarise": "fedadapt.report.gather", "write_page": "fedadapt.report.page"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "fedadapt.experiment")), name)

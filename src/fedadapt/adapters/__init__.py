"""Small trainable parts beside a frozen backbone: where they sit, what they are, merging, storing."""

from fedadapt.adapters.adapter import Adapter, Branches
from fedadapt.adapters.attach import AdaptedModel, attach
from fedadapt.adapters.bank import AdapterBank
from fedadapt.adapters.merge import merge, unmerge
from fedadapt.adapters.peft import load_peft, save_peft
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site, find_sites
from fedadapt.adapters.store import load_adapter, save_adapter

__all__ = [
    "AdaptedModel",
    "Adapter",
    "AdapterBank",
    "Branches",
    "Placement",
    "Site",
    "attach",
    "find_sites",
    "load_adapter",
    "load_peft",
    "merge",
    "save_adapter",
    "save_peft",
    "unmerge",
]

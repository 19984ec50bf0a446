"""Small trainable parts beside a frozen backbone: where they sit, what they are, merging, storing."""

from fedadapt.adapters.adapter import Adapter
from fedadapt.adapters.attach import AdaptedModel, attach
from fedadapt.adapters.merge import merge
from fedadapt.adapters.sites import Site, find_sites
from fedadapt.adapters.store import load_adapter, save_adapter

__all__ = ["AdaptedModel", "Adapter", "Site", "attach", "find_sites", "load_adapter", "merge", "save_adapter"]

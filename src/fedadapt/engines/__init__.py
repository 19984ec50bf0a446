"""Engines carry requests to clients and bring back replies; they know nothing of algorithms."""

from fedadapt.engines.engine import Engine
from fedadapt.engines.hostile import HostileEngine
from fedadapt.engines.local import LocalEngine

__all__ = ["Engine", "HostileEngine", "LocalEngine"]

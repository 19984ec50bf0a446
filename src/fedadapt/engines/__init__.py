"""Engines carry requests to clients and bring back replies; they know nothing of algorithms."""

from fedadapt.engines.engine import Blueprint, Engine, MakeEngine
from fedadapt.engines.local import LocalEngine

__all__ = ["Blueprint", "Engine", "LocalEngine", "MakeEngine"]

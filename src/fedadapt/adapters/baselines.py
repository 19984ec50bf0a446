"""The baselines that every adapter has to beat: they add no tensors, and differ in what they train."""

from __future__ import annotations

from fedadapt.adapters.adapter import Adapter
from fedadapt.params import Group
from fedadapt.registry import register


@register("adapter", "full")
def full() -> Adapter:
    """Full fine-tuning: every weight is trained and sent. Clients are trained one at a time."""
    return Adapter("full", frozenset({Group.BACKBONE, Group.NORM_AFFINE, Group.HEAD}))


@register("adapter", "head")
def head() -> Adapter:
    """Only the linear head is trained and sent."""
    return Adapter("head", frozenset({Group.HEAD}))


@register("adapter", "norm_head")
def norm_head() -> Adapter:
    """Only scale and shift of the norms, and the head."""
    return Adapter("norm_head", frozenset({Group.NORM_AFFINE, Group.HEAD}))

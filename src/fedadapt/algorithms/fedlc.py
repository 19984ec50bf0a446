"""FedLC."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from fedadapt.algorithms.algorithm import Algorithm, LocalRule
from fedadapt.registry import register

_FEWEST = 1e-8


@register("algorithm", "fedlc")
def fedlc(tau: Annotated[float, Field(ge=0)] = 0.5) -> Algorithm:
    """FedLC: logits are calibrated by how often a client has their class, so that rare classes keep a margin.

    In local training ``tau * n_c^(-1/4)`` is taken from the logit of class c, of which the client has n_c samples.

    Args:
        tau: how wide the margin is; 0 is FedAvg.

    Example:
        >>> logits, counts = torch.zeros(1, 1, 2), torch.tensor([[1, 16]])
        >>> fedlc(tau=0.5).local.adjust(logits, counts)
        tensor([[[-0.5000, -0.2500]]])

    Source:
        J. Zhang, Z. Li, B. Li, J. Xu, S. Wu, S. Ding, C. Wu, *Federated Learning with Label Distribution Skew via Logits
        Calibration*, ICML 2022, equation 9.

    Differs:
        A class without samples, for which the margin would be infinite, counts as 1e-8 of one: 100 tau.
    """

    def adjust(logits: Float[Tensor, "K B D"], counts: Int64[Tensor, "K D"]) -> Float[Tensor, "K B D"]:
        return logits - tau * counts.to(torch.float32).clamp(min=_FEWEST)[:, None] ** -0.25

    return Algorithm("FedLC", local=LocalRule(adjust=adjust))

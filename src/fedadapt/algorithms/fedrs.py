"""FedRS."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from fedadapt.algorithms.algorithm import Algorithm, LocalRule
from fedadapt.registry import register


@register("algorithm", "fedrs")
def fedrs(alpha: Annotated[float, Field(ge=0, le=1)] = 0.5) -> Algorithm:
    """FedRS: a restricted softmax, in which classes that a client does not hold push less.

    In local training the logit of a class without samples is multiplied by `alpha`.

    Args:
        alpha: how much of a missing class's logit is left; 1 is FedAvg.

    Example:
        >>> logits, counts = torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[3, 0, 1]])
        >>> fedrs(alpha=0.5).local.adjust(logits, counts)
        tensor([[[1., 1., 4.]]])

    Source:
        X.-C. Li, D.-C. Zhan, *FedRS: Federated Learning with Restricted Softmax for Label Distribution Non-IID Data*,
        KDD 2021, equation 6.

    Differs:
        The paper's last layer has no bias; here the bias of a missing class is restricted with its logit.
    """

    def adjust(logits: Float[Tensor, "K B D"], counts: Int64[Tensor, "K D"]) -> Float[Tensor, "K B D"]:
        return logits * torch.where(counts > 0, 1.0, alpha)[:, None]

    return Algorithm("FedRS", local=LocalRule(adjust=adjust))

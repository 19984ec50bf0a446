"""MOON."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedadapt.algorithms.algorithm import Algorithm, Contrast, LocalRule, Origin, Work, send_difference
from fedadapt.params import Streams
from fedadapt.registry import register


@register("algorithm", "moon")
def moon(
    mu: Annotated[float, Field(ge=0)] = 1.0, temperature: Annotated[float, Field(gt=0)] = 0.5
) -> Algorithm:
    """MOON: a client's features are drawn to those of the global model, and away from those of its last local one.

    ``mu * -log(e^(s_g / t) / (e^(s_g / t) + e^(s_p / t)))`` is added to the loss of each sample, where s_g and s_p are the
    cosines between its features and those that the global and the client's previous model give it.

    Args:
        mu: weight of the contrast; 0 is FedAvg. A step costs two more forward passes.
        temperature: t.

    Example:
        >>> import torch
        >>> mine, same, other = (torch.tensor([[v]]) for v in ([1.0, 0.0], [2.0, 0.0], [0.0, 3.0]))
        >>> moon(mu=2.0, temperature=1.0).local.contrast.penalty(mine, [same, other])  # 2 log(1 + e^(0 - 1))
        tensor([[0.6265]])

    Source:
        Q. Li, B. He, D. Song, *Model-Contrastive Federated Learning*, CVPR 2021, equation 3 and algorithm 1.

    Differs:
        Features are what the head takes; the paper adds a projection head of two layers. The other two models use
        their running statistics.
    """

    def penalty(features: Float[Tensor, "K B C"], others: list[Tensor]) -> Float[Tensor, "K B"]:
        drawn, away = (functional.cosine_similarity(features, other, dim=2) for other in others)
        return mu * functional.softplus((away - drawn) / temperature)

    return Algorithm(
        "MOON",
        local=LocalRule(
            contrast=Contrast(("model", "previous"), penalty),
            finish=_finish,
            memory={"previous": Origin.MODEL},
        ),
    )


def _finish(work: Work) -> tuple[Streams, Streams]:
    upload, _ = send_difference(work)
    return upload, {"previous": work.end}

"""FedSAM and FedASAM."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.algorithms.algorithm import Algorithm, LocalRule, Work
from fedadapt.params import Params
from fedadapt.registry import register
from fedadapt.training.local import Gradient
from fedadapt.training.optimizers import across, joint_norms

_SMALLEST_NORM = 1e-12


@register("algorithm", "fedsam")
def fedsam(rho: Annotated[float, Field(ge=0)] = 0.05) -> Algorithm:
    """FedSAM: clients look for flat minima, by taking each gradient where the loss nearby is worst.

    The gradient is that at ``w + rho g / |g|``, g the gradient at w; the norm is over all trained values of a client.
    Each step costs two gradients.

    Args:
        rho: how far to look; 0 is FedAvg.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms.algorithm import Work
        >>> from fedadapt.training.config import TrainConfig
        >>> work = Work({}, {}, torch.zeros(1, dtype=torch.int64), 0.1, TrainConfig(), {}, {})
        >>> gradient = fedsam(rho=0.5).local.gradient(lambda point: dict(point), work)  # of w^2 / 2
        >>> gradient({"w": torch.tensor([[2.0]])})["w"]
        tensor([[2.5000]])

    Source:
        Z. Qu, X. Li, R. Duan, Y. Liu, B. Tang, Z. Lu, *Generalized Federated Learning via Sharpness Aware Minimization*,
        ICML 2022, algorithm 1.
    """

    def gradient(plain: Gradient, work: Work) -> Gradient:
        del work

        def worst(point: Params) -> Params:
            here = plain(point)
            factor = rho / joint_norms(here).clamp(min=_SMALLEST_NORM)
            return plain({n: t + across(factor, t) * here[n] for n, t in point.items()})

        return worst

    return Algorithm("FedSAM", local=LocalRule(gradient=gradient))


@register("algorithm", "fedasam")
def fedasam(rho: Annotated[float, Field(ge=0)] = 0.5, eta: Annotated[float, Field(ge=0)] = 0.2) -> Algorithm:
    """FedASAM: FedSAM that looks further along large weights, and so does not depend on their scale.

    The gradient is that at ``w + rho T^2 g / |T g|``, where ``T = |w| + eta`` value by value.

    Args:
        rho: how far to look; 0 is FedAvg.
        eta: how far to look along weights of zero.

    Example:
        >>> import torch
        >>> from fedadapt.algorithms.algorithm import Work
        >>> from fedadapt.training.config import TrainConfig
        >>> work = Work({}, {}, torch.zeros(1, dtype=torch.int64), 0.1, TrainConfig(), {}, {})
        >>> gradient = fedasam(rho=0.5, eta=1.0).local.gradient(lambda point: dict(point), work)  # of w^2 / 2
        >>> gradient({"w": torch.tensor([[2.0]])})["w"]  # T = 3: 2 + 0.5 * 9 * 2 / 6
        tensor([[3.5000]])

    Source:
        D. Caldarola, B. Caputo, M. Ciccone, *Improving Generalization in Federated Learning by Seeking Flat Minima*, ECCV
        2022, section 4, after J. Kwon, J. Kim, H. Park, I. K. Choi, *ASAM*, ICML 2021, algorithm 1.

    Differs:
        Every trained tensor is scaled by its size; ASAM leaves biases and norms as they are.
    """

    def gradient(plain: Gradient, work: Work) -> Gradient:
        del work

        def worst(point: Params) -> Params:
            here = plain(point)
            sizes = {n: t.abs() + eta for n, t in point.items()}
            scaled = {n: sizes[n] * g for n, g in here.items()}
            factor = rho / joint_norms(scaled).clamp(min=_SMALLEST_NORM)
            return plain({n: t + across(factor, t) * sizes[n] * scaled[n] for n, t in point.items()})

        return worst

    return Algorithm("FedASAM", local=LocalRule(gradient=gradient))

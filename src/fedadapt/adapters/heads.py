"""What happens to the head, the last linear layer: trained and shared, kept by the client, frozen, or low-rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fedadapt.adapters.class_means import ClassMeans
from fedadapt.errors import AttachError
from fedadapt.params import Group
from fedadapt.registry import register


@dataclass(frozen=True)
class HeadPolicy:
    """What happens to the head.

    Args:
        name: as in the configuration.
        build: ``(linear, generator) -> module`` with a client axis that takes the head's place; None to leave it
            frozen.
        kept: the head's group, if each client keeps its own.
        start: the class means that it starts from, for which all clients are asked once before the first round;
            None to start as the backbone has it.
        linear: whether the logits are linear in what is trained.
    """

    name: str
    build: Callable[[nn.Linear, torch.Generator], nn.Module] | None
    kept: frozenset[Group] = frozenset()
    start: ClassMeans | None = None
    linear: bool = True


class ClientLinear(nn.Module):
    """One linear layer for each client, ``[K*B, C]`` to ``[K*B, D]``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        self.weight = nn.Parameter(linear.weight.detach().clone()[None], requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone()[None], requires_grad=False)

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        by_client = x.unflatten(0, (self.weight.shape[0], -1))
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return torch.baddbmm(bias[:, None], by_client, weight.transpose(1, 2)).flatten(0, 1)


class LowRankHead(nn.Module):
    """A frozen weight with a low-rank difference and a bias for each client: ``y = (W + U D) x + b``.

    Args:
        linear: the head to stand in for.
        rank: of the difference.
        generator: draws D from N(0, 1/C); U is zero.
    """

    base: Tensor

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        channels, classes = linear.in_features, linear.out_features
        bias = torch.zeros(classes) if linear.bias is None else linear.bias
        self.register_buffer("base", linear.weight.detach().clone(), persistent=False)
        self.down = nn.Parameter(torch.zeros(1, rank, channels), requires_grad=False)
        self.down.normal_(0.0, channels**-0.5, generator=generator)
        self.up = nn.Parameter(torch.zeros(1, classes, rank), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone()[None], requires_grad=False)

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        by_client = x.unflatten(0, (self.bias.shape[0], -1))
        thin = torch.bmm(by_client, self.down.to(x.dtype).transpose(1, 2))
        added = torch.baddbmm(self.bias.to(x.dtype)[:, None], thin, self.up.to(x.dtype).transpose(1, 2))
        return added.flatten(0, 1) + x @ self.base.T


@register("head policy", "trained")
def trained_head(
    *,
    start: Literal["backbone", "class_means", "lda"] = "backbone",
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1,
) -> HeadPolicy:
    """The head is trained and shared; the default.

    Args:
        start: ``"backbone"``: as the backbone has it. ``"class_means"``: from one exchange before the first round,
            in which every client says the sum of its features by class and how many there are; round 0 measures
            the head that this gives. ``"lda"``: clients say the second moments of their features too. These say
            more of a client than an update does: of a class with one sample, its features. See
            `fedadapt.adapters.class_means.head_from_moments`, which has the sources.
        shrinkage: of the covariance under ``"lda"``.
    """
    means = None if start == "backbone" else ClassMeans(covariance=start == "lda", shrinkage=shrinkage)
    return HeadPolicy("trained", lambda linear, generator: ClientLinear(linear), start=means)


@register("head policy", "kept")
def kept_head() -> HeadPolicy:
    """Each client trains its own head and keeps it to itself (FedPer).

    Source: M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary, *Federated Learning with Personalization
    Layers*, arXiv 1912.00818, 2019, section 3.
    """
    return HeadPolicy("kept", lambda linear, generator: ClientLinear(linear), frozenset({Group.HEAD}))


@register("head policy", "frozen")
def frozen_head() -> HeadPolicy:
    """The head stays as it starts and is not sent: for a backbone that already has the right one."""
    return HeadPolicy("frozen", None)


@register("head policy", "low_rank")
def low_rank_head(*, rank: Annotated[int, Field(ge=1)] = 8) -> HeadPolicy:
    """The head's difference from its start is of low rank: for many classes.

    ``y = (W + U D) x + b``: ``rank * (C + D) + D`` values in place of ``C * D + D``. W follows from the run's seed
    like the rest of the start, and is not sent.

    Args:
        rank: below what would need as many values as the whole head.

    Raises:
        AttachError: when it is attached, if it would need more values than the whole head.

    Source:
        E. J. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, section 4.1.
    """

    def build(linear: nn.Linear, generator: torch.Generator) -> nn.Module:
        channels, classes = linear.in_features, linear.out_features
        if rank * (channels + classes) >= channels * classes:
            raise AttachError(
                f"head.rank={rank} needs {rank * (channels + classes)} values, the whole head of {channels} channels and "
                f"{classes} classes has {channels * classes}; use a smaller rank or head 'trained'"
            )
        return LowRankHead(linear, rank, generator)

    return HeadPolicy("low_rank", build, linear=False)

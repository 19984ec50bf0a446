"""Norm policies, and batch norm on the client axis.

Averaging networks with batch norm goes wrong in well-known ways: statistics drift apart under skewed labels,
averaged variances miss the variance between clients, counters become fractions. A policy says outright what
happens to the two kinds of norm tensors: the *affine* (scale and shift) and the *statistics* (running mean and
variance). ``num_batches_tracked`` does not exist here: it never trains, never travels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fedadapt.params import Group
from fedadapt.registry import register


@dataclass(frozen=True)
class NormPolicy:
    """What happens to norm layers.

    Args:
        name: as in the configuration.
        moving: whether training uses the statistics of each batch and moves the running ones; otherwise the
            pretrained statistics are used in training too, and samples do not interact.
        kept: the norm groups that each client keeps to itself.
    """

    name: str
    moving: bool
    kept: frozenset[Group]


@register("norm policy", "frozen")
def frozen() -> NormPolicy:
    """Statistics stay as pretrained; the affine is trained and shared. No bytes, no drift; the default."""
    return NormPolicy("frozen", moving=False, kept=frozenset())


@register("norm policy", "local")
def local() -> NormPolicy:
    """Statistics and affine move and stay with the client (FedBN).

    Source: X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou, *FedBN: Federated Learning on Non-IID Features via
    Local Batch Normalization*, ICLR 2021, section 3.
    """
    return NormPolicy("local", moving=True, kept=frozenset({Group.NORM_AFFINE, Group.NORM_STATISTICS}))


@register("norm policy", "averaged")
def averaged() -> NormPolicy:
    """Statistics move and are averaged like weights: what naive code does, kept for comparison.

    The mean of the clients' variances leaves out the variance between their means, so the averaged network
    normalises wrongly where clients differ.
    """
    return NormPolicy("averaged", moving=True, kept=frozenset())


class Pass:
    """What a forward pass needs to know besides its input, shared by all norms of one model.

    Attributes:
        training: whether moving norms use and update batch statistics.
        mask: ``[K, B]``, which samples are real; None if all are.
    """

    def __init__(self) -> None:
        self.training = False
        self.mask: Bool[Tensor, "K B"] | None = None


class ClientBatchNorm(nn.Module):
    """A batch norm whose affine, and statistics if they move, carry a client axis.

    With frozen statistics it is one multiplication and one addition a value::

        y = x * scale_k + shift_k,   scale_k = weight_k / sqrt(var + eps),   shift_k = bias_k - mean * scale_k

    With moving statistics and in training, mean and variance are those of the client's own real samples;
    running values move by `momentum` towards them (variance with Bessel's correction, as torch does).

    Args:
        norm: the batch norm to stand in for; if it fuses an activation (timm's ``BatchNormAct2d``), that stays.
        moving: see `NormPolicy`.
        pass_: shared with the model.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, *, moving: bool, pass_: Pass) -> None:
        super().__init__()
        count = norm.num_features
        weight = norm.weight if norm.affine else torch.ones(count)
        bias = norm.bias if norm.affine else torch.zeros(count)
        self.weight = nn.Parameter(weight.detach().clone()[None], requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone()[None], requires_grad=False)
        mean = torch.zeros(count) if norm.running_mean is None else norm.running_mean.clone()
        var = torch.ones(count) if norm.running_var is None else norm.running_var.clone()
        self.register_buffer("running_mean", mean[None] if moving else mean)
        self.register_buffer("running_var", var[None] if moving else var)
        self.eps = norm.eps
        self.momentum = 0.1 if norm.momentum is None else norm.momentum
        self.moving = moving
        self.pass_ = pass_
        # timm's fused norms apply these two after the norm; a plain batch norm has neither.
        self.after = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if m is not None]

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        # An affine that is not trained keeps a client axis of 1, whatever the statistics have.
        clients = max(self.weight.shape[0], self.running_mean.shape[0] if self.moving else 1)
        by_client = x.unflatten(0, (clients, -1))
        if self.moving and self.pass_.training:
            mean, var = self._batch_statistics(by_client)
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        y = torch.addcmul(
            shift.to(x.dtype)[:, None, :, None, None], by_client, scale.to(x.dtype)[:, None, :, None, None]
        ).flatten(0, 1)
        for module in self.after:
            y = module(y)
        return y

    def _batch_statistics(self, x: Float[Tensor, "K B C H W"]) -> tuple[Tensor, Tensor]:
        clients, samples, _, height, width = x.shape
        mask = self.pass_.mask
        if mask is None:
            mask = torch.ones(clients, samples, dtype=torch.bool, device=x.device)
        weight = mask[:, :, None, None, None].to(torch.float32)
        count = mask.sum(1, keepdim=True) * float(height * width)
        values = x.float()
        mean = (values * weight).sum((1, 3, 4)) / count.clamp(min=1)
        spread = (values - mean[:, None, :, None, None]).square() * weight
        var = spread.sum((1, 3, 4)) / count.clamp(min=1)
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp(min=1)
            rate = torch.where(count > 0, self.momentum, 0.0)
            self.running_mean.lerp_(mean, rate.expand_as(mean))
            self.running_var.lerp_(unbiased, rate.expand_as(var))
        # A client that is out of steps has no samples to take statistics of; zeros would blow up what is masked.
        real = count > 0
        return torch.where(real, mean, self.running_mean), torch.where(real, var, self.running_var)

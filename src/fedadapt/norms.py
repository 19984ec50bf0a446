"""Norm policies, and norms on the client axis.

Averaging networks with batch norm goes wrong in well-known ways: statistics drift apart under skewed labels,
averaged variances miss the variance between clients, counters become fractions. A policy says outright what
happens to the two kinds of norm tensors: the *affine* (scale and shift) and the *statistics* (running mean and
variance). ``num_batches_tracked`` does not exist here: it never trains, never travels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

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
        pooled: whether moving variances are held as moments whose mean over clients is exact.
    """

    name: str
    moving: bool
    kept: frozenset[Group]
    pooled: bool = False


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


@register("norm policy", "pooled")
def pooled() -> NormPolicy:
    """Statistics move and are pooled exactly: the server's are those that all clients' samples together would give.

    ``mean = sum_k p_k mean_k`` and ``var = sum_k p_k (var_k + (mean_k - mean)^2)``, p_k the clients' shares of
    the samples (law of total variance). What is held, sent and averaged in place of the variance is the second
    moment about the pretrained mean m, ``square_k = var_k + (mean_k - m)^2``: m is the same for all, so the mean
    of the squares is the square of the whole, and ``var = square - (mean - m)^2``. The same law joins the
    batches of one client. Any algorithm that averages is exact; as many bytes travel as under `averaged`. As in any
    batch norm, running moments move by `momentum` a batch: what was there before fades, and is not gone at once.

    Differs: torch's running variance is a mean of batch variances with Bessel's correction; this one has no
        correction and includes the variance between batches.
    """
    return NormPolicy("pooled", moving=True, kept=frozenset(), pooled=True)


class Pass:
    """What a forward pass needs to know besides its input, shared by all norms and branches of one model.

    Attributes:
        training: whether moving norms use and update batch statistics.
        mask: ``[K, B]``, which samples are real; None if all are.
        noise: what each client's dropout follows from; empty if nothing is dropped.
    """

    def __init__(self) -> None:
        self.noise: Sequence[int] = ()
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
        pooled: see `NormPolicy`; ``running_square`` then stands for ``running_var``.
    """

    running_mean: Tensor
    running_var: Tensor
    running_square: Tensor
    origin: Tensor

    def __init__(self, norm: _BatchNorm, *, moving: bool, pass_: Pass, pooled: bool = False) -> None:
        super().__init__()
        count = norm.num_features
        weight = norm.weight if norm.affine else torch.ones(count)
        bias = norm.bias if norm.affine else torch.zeros(count)
        self.weight = nn.Parameter(weight.detach().clone()[None], requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone()[None], requires_grad=False)
        mean = torch.zeros(count) if norm.running_mean is None else norm.running_mean.clone()
        var = torch.ones(count) if norm.running_var is None else norm.running_var.clone()
        self.register_buffer("running_mean", mean[None] if moving else mean)
        # About its own mean, the second moment is the variance: the start is the same to the bit.
        self.register_buffer("running_square" if pooled else "running_var", var[None] if moving else var)
        if pooled:
            self.register_buffer("origin", mean.clone())
        self.pooled = pooled
        self.eps = norm.eps
        self.momentum = 0.1 if norm.momentum is None else norm.momentum
        self.moving = moving
        self.pass_ = pass_
        self.after = fused(norm)

    def forward(self, x: Float[Tensor, "N C ..."]) -> Float[Tensor, "N C ..."]:
        # What is not trained keeps a client axis of 1, whatever the rest has.
        moved = self.running_mean.shape[0] if self.moving else 1
        if self.moving and self.pass_.training:
            clients = max(self.weight.shape[0], self.bias.shape[0], moved)
            mean, var = self._batch_statistics(x.unflatten(0, (clients, -1)))
        else:
            mean, var = self.running_mean, self.variance(self.running_mean)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        y: Tensor = _ClientAffine.apply(x, scale, shift)
        for module in self.after:
            y = module(y)
        return y

    def variance(self, mean: Tensor, square: Tensor | None = None) -> Tensor:
        """The variance that goes with a running mean, of the norm's own running tensor or of another."""
        if not self.pooled:
            return self.running_var if square is None else square
        return ((self.running_square if square is None else square) - (mean - self.origin).square()).clamp(
            min=0
        )

    def _batch_statistics(self, x: Float[Tensor, "K B C ..."]) -> tuple[Tensor, Tensor]:
        clients, samples, channels, *sides = x.shape
        over, ones = (1, *range(3, x.ndim)), [1 for _ in sides]
        mask = self.pass_.mask
        if mask is None:
            mask = torch.ones(clients, samples, dtype=torch.bool, device=x.device)
        weight = mask.view(clients, samples, 1, *ones).to(torch.float32)
        count = mask.sum(1, keepdim=True) * float(math.prod(sides))
        values = x.float()
        mean = (values * weight).sum(over) / count.clamp(min=1)
        spread = (values - mean.view(clients, 1, channels, *ones)).square() * weight
        var = spread.sum(over) / count.clamp(min=1)
        with torch.no_grad():
            rate = torch.where(count > 0, self.momentum, 0.0).expand_as(mean)
            self.running_mean.lerp_(mean, rate)
            if self.pooled:
                self.running_square.lerp_(var + (mean - self.origin).square(), rate)
            else:
                self.running_var.lerp_(var * count / (count - 1).clamp(min=1), rate)
        # A client that is out of steps has no samples to take statistics of; zeros would blow up what is masked.
        real = count > 0
        resting = self.variance(self.running_mean)
        return torch.where(real, mean, self.running_mean), torch.where(real, var, resting)


ALONE_FROM = 2**15
"""Values of one client's map from which it is faster to go backwards client by client."""


class _ClientAffine(torch.autograd.Function):
    """``y = x * scale_k + shift_k`` by channel, in one pass over the map; backwards in four, of a large map in two.

    On channels-last maps the factors of one channel lie so close together that they are repeated along a row of
    the image: broadcasting over the few channels of one pixel takes several times as long, in bf16 ten times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        # What is not trained, scale or shift, keeps a client axis of 1.
        ctx.lengths = len(scale), len(shift)
        clients = max(len(scale), len(shift))
        scale, shift = scale.expand(clients, -1), shift.expand(clients, -1)
        rows = _rows(x, clients)
        ctx.save_for_backward(x, scale)
        y = torch.empty_permuted(x.shape, (0, *range(2, x.ndim), 1), dtype=x.dtype, device=x.device)
        torch.addcmul(_along(shift, rows), rows, _along(scale, rows), out=_rows(y, clients))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, scale = ctx.saved_tensors
        if not x.is_cuda and x.numel() >= ALONE_FROM * len(scale):
            by_x, by_scale, by_shift = _client_by_client(gradient, x, scale, ctx.needs_input_grad)
        else:
            rows = _rows(gradient, len(scale))
            by_x = by_scale = by_shift = None
            if ctx.needs_input_grad[0]:
                by_x = (rows * _along(scale, rows)).view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
            if ctx.needs_input_grad[1]:
                by_scale = _by_channel((rows * _rows(x, len(scale))).sum(1), scale)
            if ctx.needs_input_grad[2]:
                by_shift = _by_channel(rows.sum(1), scale)
        by_scale, by_shift = (
            None if sums is None else sums.sum_to_size(length, scale.shape[1])
            for sums, length in zip((by_scale, by_shift), ctx.lengths, strict=True)
        )
        return by_x, by_scale, by_shift


def _client_by_client(
    gradient: Tensor, x: Tensor, scale: Float[Tensor, "K C"], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """What ``x * scale_k + shift_k`` hands back, as torch's batch norm has it where mean is 0 and variance 1."""
    mean, var = scale.new_zeros(scale.shape[1]), scale.new_ones(scale.shape[1])
    found = [
        torch.ops.aten.native_batch_norm_backward(
            own, x_own, own_scale, mean, var, None, None, False, 0.0, wanted
        )
        for own, x_own, own_scale in zip(gradient.chunk(len(scale)), x.chunk(len(scale)), scale, strict=True)
    ]
    by_x, *sums = zip(*found, strict=True)
    whole = by_x[0] if len(by_x) == 1 else torch.cat(by_x) if wanted[0] else None
    return [whole, *(torch.stack(own) if want else None for own, want in zip(sums, wanted[1:], strict=True))]


def _rows(x: Float[Tensor, "N C ..."], clients: int) -> Float[Tensor, "K R WC"]:
    """Rows of pixels with their channels, by client: a view of channels-last maps."""
    width = x.shape[-1] if x.ndim > 2 else 1
    return x.movedim(1, -1).reshape(clients, -1, width * x.shape[1])


def _along(values: Float[Tensor, "K C"], rows: Tensor) -> Float[Tensor, "K 1 WC"]:
    repeats = rows.shape[2] // values.shape[1]
    return values.to(rows.dtype)[:, None].expand(-1, repeats, -1).reshape(len(values), 1, -1)


def _by_channel(sums: Float[Tensor, "K WC"], like: Float[Tensor, "K C"]) -> Float[Tensor, "K C"]:
    return sums.to(like.dtype).unflatten(1, (-1, like.shape[1])).sum(1)


class ClientNorm(nn.Module):
    """A layer or group norm whose affine carries a client axis: ``y = norm(x) * weight_k + bias_k``.

    Such norms have no statistics of their own and treat every sample by itself, so no policy concerns them.

    Args:
        norm: the norm to stand in for; if it fuses an activation, that stays.
        axis: along which its affine lies, see `affine_axis`.
    """

    def __init__(self, norm: nn.Module, axis: int) -> None:
        super().__init__()
        self.base = bare(norm)
        self.axis = axis
        for name in ("weight", "bias"):
            own = getattr(norm, name, None)
            self.register_parameter(
                name, None if own is None else nn.Parameter(own.detach().clone()[None], requires_grad=False)
            )
        self.after = fused(norm)

    def forward(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
        y = self.base(x)
        wide = [1 for _ in range(y.ndim + 1)]
        wide[0] = wide[self.axis + 1] = -1
        for name, apply in (("weight", torch.mul), ("bias", torch.add)):
            own = getattr(self, name)
            if own is not None:
                wide[self.axis + 1] = own.shape[1]
                by_client = y.unflatten(0, (own.shape[0], -1))
                y = apply(by_client, own.to(y.dtype).view(wide)).flatten(0, 1)
        for module in self.after:
            y = module(y)
        return y


def fused(norm: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """What a norm applies after its affine: timm's fused norms have a ``drop`` and an ``act``, others nothing."""
    return [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if m is not None]


def bare(norm: nn.Module) -> nn.Module:
    """A copy of a norm without its affine and without what it fuses."""
    copied = copy.deepcopy(norm)
    for name in ("weight", "bias"):
        if name in dict(copied.named_parameters(recurse=False)):
            copied.register_parameter(name, None)
    for name in ("drop", "act"):
        if getattr(copied, name, None) is not None:
            setattr(copied, name, nn.Identity())
    return copied


def affine_axis(norm: nn.Module, shape: tuple[int, ...]) -> int | None:
    """The axis along which a norm's affine lies, found by trying it out; None if it does something else.

    A norm over channels may have them first or last, whatever it is derived from.

    Args:
        norm: with a weight.
        shape: of an input.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    trial = bare(norm).float().cpu()
    own = {n: torch.randn(p.shape, generator=generator) for n, p in norm.named_parameters(recurse=False)}
    with torch.no_grad():
        try:
            plain = trial(x)
            for name, tensor in own.items():
                trial.register_parameter(name, nn.Parameter(tensor))
            scaled = trial(x)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return None
        for axis in (1, len(shape) - 1):
            wide = [1 for _ in shape]
            wide[axis] = -1
            if own["weight"].ndim == 1 and own["weight"].numel() == shape[axis]:
                expected = plain * own["weight"].view(wide)
                expected = expected + own["bias"].view(wide) if "bias" in own else expected
                if torch.allclose(scaled, expected, rtol=1e-4, atol=1e-4):
                    return axis
    return None

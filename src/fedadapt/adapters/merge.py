"""Folds a trained adapter into the plain network: inference costs nothing, the result is a stock model."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fedadapt.adapters.adapter import Fold
from fedadapt.adapters.attach import AdaptedModel
from fedadapt.adapters.heads import LowRankHead
from fedadapt.adapters.probe import noise
from fedadapt.adapters.sites import Site, tied_parameters
from fedadapt.errors import AttachError
from fedadapt.norms import ClientBatchNorm
from fedadapt.params import Params

TOLERANCE = 1e-5
"""Largest relative difference between adapted and merged outputs that counts as equal in fp32."""


def merge(model: AdaptedModel, params: Params) -> nn.Module:
    """The plain network that computes what `model` computes with `params`.

    Every branch is folded into the weight of its layer, as its adapter says; norms and head are written back.
    The result is then run against the adapted model on random images, and refused if the two differ.

    Args:
        model: in any compute type; the comparison is made in fp32.
        params: the tensors of one client or of the global model, without client axis.

    Raises:
        AttachError: the adapter is not linear, a layer does not apply its weight as it is, or the merged network
            computes something else.
    """
    plain = copy.deepcopy(model.backbone.module).cpu().float()
    # Made anew in fp32: what branches do not train was rounded if the model computes in another type.
    exact = AdaptedModel(model.backbone, model.adapter, model.policy, model.seed, model.head)
    exact.to("cpu", torch.float32)
    state = plain.state_dict()
    values = {name: tensor.detach().cpu() for name, tensor in params.items()}
    with torch.no_grad():
        tied = tied_parameters(plain)
        for site in model.sites:
            fold = _mergeable(model, site, tied)
            branch = branch_of(exact, values, site)
            weight, bias = state[f"{site.name}.weight"], state.get(f"{site.name}.bias")
            folded, shifted = fold(site, weight, bias, branch)
            weight.copy_(folded)
            if bias is not None and shifted is not None:
                bias.copy_(shifted)
        for name, tensor in values.items():
            if name in state:
                state[name].copy_(tensor)
        for name, module in exact.module.named_modules():
            if isinstance(module, ClientBatchNorm) and module.pooled:
                moments = (values[f"{name}.{moment}"] for moment in ("running_mean", "running_square"))
                state[f"{name}.running_var"].copy_(module.variance(*moments))
        if isinstance(head := exact.module.get_submodule(model.backbone.head), LowRankHead):
            prefix = f"{model.backbone.head}."
            own = {n.removeprefix(prefix): t for n, t in values.items() if n.startswith(prefix)}
            state[f"{prefix}weight"].copy_(head.base + own["up"] @ own["down"])
    _verify(exact, values, plain)
    return plain


def unmerge(plain: nn.Module, model: AdaptedModel) -> None:
    """Gives a merged network the backbone's own weights back, bit for bit, in place.

    They are copied, not computed: subtracting what was added would leave rounding behind. Norms, their
    statistics and the head are the backbone's again too.
    """
    plain.load_state_dict(model.backbone.module.state_dict())


def _mergeable(model: AdaptedModel, site: Site, tied: set[str]) -> Fold:
    """How a branch is folded.

    Raises:
        AttachError: it cannot be; the message says why.
    """
    name = model.adapter.name
    instead = "export the adapter by itself instead"
    fold = None if model.adapter.branches is None else model.adapter.branches.fold
    if fold is None:
        raise AttachError(
            f"adapter {name!r} is not linear in its input, no weight computes the same; {instead}"
        )
    if not site.applies_weight:
        raise AttachError(
            f"the {type(site.module).__name__} at {site.name!r} changes its weight before it applies it, so adapter "
            f"{name!r} cannot be merged into it; {instead}"
        )
    if f"{site.name}.weight" in tied:
        raise AttachError(
            f"the weight at {site.name!r} is used by other layers too, so adapter {name!r} cannot be merged into it; {instead}"
        )
    return fold


def branch_of(model: AdaptedModel, params: Params, site: Site) -> Params:
    """The tensors of one branch without client axis, those that are not trained among them."""
    prefix = f"{site.name}.adapter."
    fixed = dict(model.module.get_submodule(f"{site.name}.adapter").named_buffers())
    return fixed | {n.removeprefix(prefix): t for n, t in params.items() if n.startswith(prefix)}


def _verify(model: AdaptedModel, params: Params, plain: nn.Module) -> None:
    images = noise(model.backbone.image, 2)
    with torch.inference_mode():
        adapted = model({name: tensor[None] for name, tensor in params.items()}, images)
        merged = plain(images)
    difference = float((adapted - merged).abs().max() / adapted.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise AttachError(
            f"the merged network differs from the adapted one by {difference:.1e} of its largest output "
            f"(at most {TOLERANCE:.0e} is allowed); export the adapter by itself instead"
        )

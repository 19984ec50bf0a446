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

INSTEAD = "export the adapter by itself instead"


def merge(model: AdaptedModel, params: Params) -> nn.Module:
    """The plain network that computes what `model` computes with `params`.

    Every branch is folded into the weight of its layer, as its adapter says; norms and head are written back.
    The result is then run against the adapted model on random images, and refused if the two differ.

    Args:
        model: in any compute type; the comparison is made in fp32.
        params: the tensors of one client or of the global model, without client axis.

    Raises:
        AttachError: `params` are not those of the model, the adapter is not linear, a layer does not apply its weight
            as it is, or the merged network computes something else.
    """
    model.check(params, "what is to be merged")
    plain = copy.deepcopy(model.backbone.module).cpu().float()
    exact = model.exact()
    state = plain.state_dict()
    values = {name: tensor.detach().cpu() for name, tensor in params.items()}
    with torch.no_grad():
        tied = tied_parameters(plain)
        for site in model.sites:
            weight, bias = state[f"{site.name}.weight"], state.get(f"{site.name}.bias")
            folded, shifted = _folding(model)(site, weight, bias, branch_of(exact, values, site))
            if folded is not weight:
                _refuse_unmergeable(model, site, "weight", tied)
                weight.copy_(folded)
            if bias is not None and shifted is not None and shifted is not bias:
                _refuse_unmergeable(model, site, "bias", tied)
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

    Raises:
        AttachError: `plain` is another network.
    """
    try:
        plain.load_state_dict(model.backbone.module.state_dict())
    except RuntimeError as error:
        raise AttachError(
            f"the network is not backbone {model.backbone.name!r} with something merged into it: its tensors differ in name "
            "or shape"
        ) from error


def _folding(model: AdaptedModel) -> Fold:
    """How branches are folded.

    Raises:
        AttachError: they cannot be.
    """
    fold = None if model.adapter.branches is None else model.adapter.branches.fold
    if fold is None:
        raise AttachError(
            f"adapter {model.adapter.name!r} is not linear in its input, no weight computes the same; {INSTEAD}"
        )
    return fold


def _refuse_unmergeable(model: AdaptedModel, site: Site, name: str, tied: set[str]) -> None:
    """Raises if the weight or bias at a site cannot be changed in its place; the message says why."""
    adapter = model.adapter.name
    if name == "weight" and not site.applies_weight:
        raise AttachError(
            f"the {type(site.module).__name__} at {site.name!r} changes its weight before it applies it, so adapter "
            f"{adapter!r} cannot be merged into it; {INSTEAD}"
        )
    if f"{site.name}.{name}" in tied:
        raise AttachError(
            f"the {name} at {site.name!r} is used by other layers too, so adapter {adapter!r} cannot be merged into it; "
            f"{INSTEAD}"
        )


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
            f"(at most {TOLERANCE:.0e} is allowed); {INSTEAD}"
        )

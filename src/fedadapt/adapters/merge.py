"""Folds a trained adapter into the plain network: inference costs nothing, the result is a stock model."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fedadapt.adapters.attach import AdaptedModel
from fedadapt.errors import AttachError
from fedadapt.params import Params

TOLERANCE = 1e-5
"""Largest relative difference between adapted and merged outputs that counts as equal in fp32."""


def merge(model: AdaptedModel, params: Params) -> nn.Module:
    """The plain network that computes what `model` computes with `params`.

    A 1x1 kernel A beside a kernel W with a centre tap is one kernel, ``W'[:, :, c, c] = W[:, :, c, c] + A``:
    the centre tap reads the same pixels as the 1x1. Norms and head are written back. The result is then run
    against the adapted model on random images, and refused if the two differ.

    Args:
        model: in any compute type; the comparison is made in fp32.
        params: the tensors of one client or of the global model, without client axis.

    Raises:
        AttachError: the adapter is not linear, or the merged network computes something else.
    """
    plain = copy.deepcopy(model.backbone.module).cpu().float()
    state = plain.state_dict()
    values = {name: tensor.detach().cpu() for name, tensor in params.items()}
    with torch.no_grad():
        for site in model.sites:
            if model.adapter.pointwise is None:
                raise AttachError(f"adapter {model.adapter.name!r} is not a 1x1 kernel and cannot be merged")
            prefix = f"{site.name}.adapter."
            branch = {n.removeprefix(prefix): t for n, t in values.items() if n.startswith(prefix)}
            kernel = state[f"{site.name}.weight"]
            row, column = (k // 2 for k in site.module.kernel_size)
            kernel[:, :, row, column] += model.adapter.pointwise(branch)
        for name, tensor in values.items():
            if name in state:
                state[name].copy_(tensor)
    _verify(model, values, plain)
    return plain


def _verify(model: AdaptedModel, params: Params, plain: nn.Module) -> None:
    reference = AdaptedModel(model.backbone, model.adapter, model.policy, torch.Generator()).to(
        "cpu", torch.float32
    )
    first = next(m for m in plain.modules() if isinstance(m, nn.Conv2d))
    images = torch.randn(2, first.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        adapted = reference({name: tensor[None] for name, tensor in params.items()}, images)
        merged = plain(images)
    difference = float((adapted - merged).abs().max() / adapted.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise AttachError(
            f"the merged network differs from the adapted one by {difference:.1e} of its largest output "
            f"(at most {TOLERANCE:.0e} is allowed); export the adapter by itself instead"
        )

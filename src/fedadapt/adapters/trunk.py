"""Cuts a model in two before the first place that training changes: a trunk that stays as it is, and the rest.

The rest needs nothing but what the trunk makes of an image, so that can be computed once and kept.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fedadapt.adapters.attach import AdaptedModel
from fedadapt.adapters.probe import noise
from fedadapt.params import Params, expand

_PURE = {getattr, operator.getitem, "size", "dim"}
"""What may be done for nothing: looking at shapes that are not needed after all."""


def cut_trunk(model: AdaptedModel) -> tuple[nn.Module, AdaptedModel] | None:
    """The trunk, and the rest as a model that is given what the trunk gives in the place of images.

    The network is traced. It can be cut where a single tensor, with a row for each image, is all that is needed
    further on: between blocks, not beside a shortcut. The last such place before anything that changes is taken
    from which both halves give the logits, features and gradients of the whole.

    Returns:
        None where there is none behind the first layer, or the network cannot be traced: where it branches on
        values, say.
    """
    # A network that cannot be traced through its blocks may still be cut between them.
    for deep in (True, False):
        before = {module: module.__dict__.copy() for module in model.module.modules()}
        try:
            tracer = _Tracer(model, deep=deep)
            graph = tracer.trace(_takes_images_alone(model.module))
            for cut in _cuts(graph, model):
                trunk, rest = (fx.GraphModule(tracer.root, half) for half in _halves(graph, cut))
                behind = model.part(rest)
                if _is_same(model, trunk, behind):
                    return trunk, behind
        except Exception:  # noqa: BLE001, S112 - other people's networks may raise anything when they are traced
            continue
        finally:
            # A network that notes what it sees has noted what is no tensor.
            for module, own in before.items():
                module.__dict__ = own
    return None


class _Tracer(fx.Tracer):
    """Looks into a module if something inside it changes; not into what an adapter or a head put there.

    Args:
        model: to be traced.
        deep: whether to look into blocks, or into sequences of them alone.
    """

    def __init__(self, model: AdaptedModel, *, deep: bool) -> None:
        super().__init__()
        self._whole = {site.name for site in model.sites} | {model.backbone.head}
        self._changing, self._deep = _owners(model), deep

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = any(name.startswith(f"{module_qualified_name}.") for name in self._changing)
        opened = inside and (self._deep or isinstance(m, nn.Sequential))
        return module_qualified_name in self._whole or not opened


def _owners(model: AdaptedModel) -> set[str]:
    """The modules that own what changes."""
    return {name.rpartition(".")[0] for name in model.start}


def _takes_images_alone(module: nn.Module) -> nn.Module:
    """The module with its first argument alone: tracing would take the others for tensors, not for their defaults."""

    class Plain(type(module)):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Any:
            return super().forward(images)

    plain = copy.copy(module)
    plain.__class__ = Plain
    return plain


def _cuts(graph: fx.Graph, model: AdaptedModel) -> Iterator[fx.Node]:
    """Nodes that are all that later ones look at, from the last one before a change to the first behind a layer.

    Raises:
        ValueError: something is done for its effect alone, on what later ones look at perhaps.
    """
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            if node.op != "get_attr" and node.target not in _PURE:
                raise ValueError(f"{node} has an effect")
            graph.erase_node(node)
    changing = _owners(model)
    nodes = list(graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    found: list[fx.Node] = []
    needed: set[fx.Node] = set()
    layers = 0
    for number, node in enumerate(nodes):
        is_layer, is_tensor = node.op == "call_module", node.op == "get_attr"
        holds = is_layer and any(n == node.target or n.startswith(f"{node.target}.") for n in changing)
        if holds or (is_tensor and node.target in model.start) or node.op == "output":
            break
        layers += is_layer
        # A constant can be had on either side.
        if not is_tensor:
            needed.add(node)
        needed = {earlier for earlier in needed if last_use[earlier] > number}
        if layers and len(needed) == 1:
            found += needed
    return reversed(dict.fromkeys(found))


def _halves(graph: fx.Graph, cut: fx.Node) -> tuple[fx.Graph, fx.Graph]:
    """What leads to `cut`, and gives it back; and what follows from it, and is given it."""
    trunk, rest = fx.Graph(), fx.Graph()
    below: dict[fx.Node, fx.Node] = {}
    # What a layer may write to is a copy: features are looked at again.
    above = {cut: rest.call_method("clone", (rest.placeholder("features"),))}
    for node in graph.nodes:
        if cut not in below:
            below[node] = trunk.node_copy(node, below.__getitem__)
        # What is a constant of the trunk may be needed again.
        if node not in above and (cut in below or node.op == "get_attr"):
            above[node] = rest.node_copy(node, above.__getitem__)
    trunk.output(below[cut])
    return trunk, rest


def _is_same(model: AdaptedModel, trunk: nn.Module, behind: AdaptedModel) -> bool:
    """Whether both halves are the model, with its gradients, and a tensor by image is between them."""
    device = next(iter(model.start.values())).device
    images = noise(model.backbone.image, 2).to(device, model.dtype)
    generator = torch.Generator().manual_seed(0)
    stacked = {
        name: tensor + torch.rand(tensor.shape, generator=generator).to(device) / tensor.numel() ** 0.5
        for name, tensor in expand(model.start, 1).items()
    }
    with torch.no_grad():
        # The single image comes last, so that what the trunk leaves behind for the rest is not what it needs.
        between, alone = trunk(images), trunk(images[:1])
    by_image = isinstance(between, Tensor) and between.ndim > 1 and between.shape == (2, *alone.shape[1:])
    if not (by_image and _are_close([between[:1]], [alone])):
        return False
    here, there = (_outcome(one, stacked, given) for one, given in ((behind, between), (model, images)))
    return _are_close(here, there)


def _outcome(model: AdaptedModel, stacked: Params, given: Tensor) -> list[Tensor]:
    """Logits, features and gradients."""
    leaves = {n: t.clone().requires_grad_(n not in model.moving) for n, t in stacked.items()}
    with torch.enable_grad():
        logits, features = model.with_features(leaves, given)
        own = [leaf for leaf in leaves.values() if leaf.requires_grad]
        found = torch.autograd.grad(logits.square().sum(), own, allow_unused=True, materialize_grads=True)
    return [logits.detach(), features.detach(), *found]


def _are_close(here: list[Tensor], there: list[Tensor]) -> bool:
    """Whether they are finite, and differ by no more than rounding, measured by the largest value of each."""
    return all(
        a.shape == b.shape
        and bool(b.isfinite().all())
        and float((a.float() - b.float()).abs().max()) <= 1e-3 * float(b.float().abs().max())
        for a, b in zip(here, there, strict=True)
    )

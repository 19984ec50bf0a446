"""Cuts a model in two before the first place that training changes: a trunk that stays as it is, and the rest.

The rest needs nothing but what the trunk makes of an image, so that can be computed once and kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fedadapt.adapters.attach import AdaptedModel
from fedadapt.adapters.probe import noise
from fedadapt.params import expand


def cut_trunk(model: AdaptedModel) -> tuple[nn.Module, AdaptedModel] | None:
    """The trunk, and the rest as a model that is given what the trunk gives in the place of images.

    The network is traced. It can be cut where a single tensor, with a row for each image, is all that is needed
    further on: between blocks, not beside a shortcut. The last such place before anything that changes is taken.

    Returns:
        None where there is none behind the first layer, or the network cannot be traced: where it branches on
        values, say.
    """
    changing = {name.rpartition(".")[0] for name in model.start}
    try:
        graph = _Tracer(model, changing).trace(_takes_images_alone(model.module))
        whole = fx.GraphModule(model.module, graph)
        whole.graph.eliminate_dead_code()
        for cut in _cuts(whole.graph, changing, set(model.start)):
            trunk, rest = (fx.GraphModule(model.module, half) for half in _halves(whole.graph, cut))
            behind = model.part(rest)
            if _is_same(model, trunk, behind):
                return trunk, behind
    except Exception:  # noqa: BLE001 - other people's networks may raise anything when they are traced
        return None
    return None


class _Tracer(fx.Tracer):
    """Looks into a module if something inside it changes; not into what an adapter or a head put there."""

    def __init__(self, model: AdaptedModel, changing: Iterable[str]) -> None:
        super().__init__()
        self._whole = {site.name for site in model.sites} | {model.backbone.head}
        self._changing = tuple(changing)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del m
        inside = any(name.startswith(f"{module_qualified_name}.") for name in self._changing)
        return module_qualified_name in self._whole or not inside


def _takes_images_alone(module: nn.Module) -> nn.Module:
    """The module with its first argument alone: tracing would take the others for tensors, not for their defaults."""

    class Plain(type(module)):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Any:
            return super().forward(images)

    plain = copy.copy(module)
    plain.__class__ = Plain
    return plain


def _cuts(graph: fx.Graph, changing: set[str], tensors: set[str]) -> Iterator[fx.Node]:
    """Nodes that are all that later ones look at, from the last one before a change to the first behind a layer."""
    nodes = list(graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    found: list[fx.Node] = []
    needed: set[fx.Node] = set()
    layers = 0
    for number, node in enumerate(nodes):
        is_layer = node.op == "call_module"
        holds = is_layer and any(n == node.target or n.startswith(f"{node.target}.") for n in changing)
        if holds or node.target in tensors or node.op == "output":
            break
        layers += is_layer
        # A constant can be had on either side.
        if node.op != "get_attr":
            needed.add(node)
        needed = {earlier for earlier in needed if last_use[earlier] > number}
        if layers and len(needed) == 1:
            found += needed
    return reversed(dict.fromkeys(found))


def _halves(graph: fx.Graph, cut: fx.Node) -> tuple[fx.Graph, fx.Graph]:
    """What leads to `cut`, and gives it back; and what follows from it, and is given it."""
    trunk, rest = fx.Graph(), fx.Graph()
    below: dict[fx.Node, fx.Node] = {}
    above = {cut: rest.placeholder("features")}
    for node in graph.nodes:
        if cut not in below:
            below[node] = trunk.node_copy(node, below.__getitem__)
        # What is a constant of the trunk may be needed again.
        if node not in above and (cut in below or node.op == "get_attr"):
            above[node] = rest.node_copy(node, above.__getitem__)
    trunk.output(below[cut])
    return trunk, rest


def _is_same(model: AdaptedModel, trunk: nn.Module, behind: AdaptedModel) -> bool:
    """Whether both halves are the model, for large values as well, and a tensor by image is between them."""
    device = next(iter(model.start.values())).device
    images = noise(model.backbone.image, 2).to(device, model.dtype)
    generator = torch.Generator().manual_seed(0)
    stacked = {
        name: tensor + torch.rand(tensor.shape, generator=generator).to(device)
        for name, tensor in expand(model.start, 1).items()
    }
    with torch.inference_mode():
        between = trunk(images)
        if not isinstance(between, Tensor) or between.ndim < 2 or len(between) != len(images):
            return False
        there, here = model(stacked, images), behind(stacked, between)
    return there.shape == here.shape and torch.allclose(there, here, rtol=1e-3, atol=1e-4)

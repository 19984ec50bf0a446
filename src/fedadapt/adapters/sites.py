"""Where an adapter can sit: modules found by what they compute, never by what they are called."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Host = nn.Conv2d | nn.Linear
"""What an adapter can sit at."""


@dataclass(frozen=True)
class Site:
    """A frozen layer of the backbone, described by what an adapter has to match.

    A linear layer is described as the 1x1 convolution that it is for each token.

    Args:
        name: dotted name of the module.
        module: the layer itself.
        has_centre: whether the kernel has a centre tap that sees the same pixels as a 1x1 of the same stride.
            That takes odd kernels and a padding of ``dilation * (kernel - 1) / 2`` on each axis.
        applies_weight: whether the layer applies its weight as it is, so that adding to the weight adds to
            the output. False for instance where the weight is standardised first.
    """

    name: str
    module: Host
    has_centre: bool
    applies_weight: bool

    @property
    def kind(self) -> str:
        """``"conv"`` or ``"linear"``."""
        return "linear" if isinstance(self.module, nn.Linear) else "conv"

    @property
    def in_channels(self) -> int:
        """C."""
        return self.module.in_features if isinstance(self.module, nn.Linear) else self.module.in_channels

    @property
    def out_channels(self) -> int:
        """D."""
        return self.module.out_features if isinstance(self.module, nn.Linear) else self.module.out_channels

    @property
    def groups(self) -> int:
        """Groups of channels that do not mix."""
        return 1 if isinstance(self.module, nn.Linear) else self.module.groups

    @property
    def stride(self) -> tuple[int, int]:
        """Rows and columns between outputs."""
        return (1, 1) if isinstance(self.module, nn.Linear) else _pair(self.module.stride)

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Rows and columns of the kernel."""
        return (1, 1) if isinstance(self.module, nn.Linear) else _pair(self.module.kernel_size)

    @property
    def in_per_group(self) -> int:
        """Channels that one output sees."""
        return self.in_channels // self.groups

    @property
    def out_per_group(self) -> int:
        """Outputs that see the same channels."""
        return self.out_channels // self.groups

    def describe(self) -> dict[str, Any]:
        """What a manifest records of a site."""
        return {
            "name": self.name,
            "kind": self.kind,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "groups": self.groups,
        }


def find_sites(module: nn.Module) -> list[Site]:
    """Every convolution and plain linear layer of `module`, in the order of its definition.

    Subclasses of ``nn.Conv2d`` are looked at by what they do: each is tried out on noise. Subclasses of
    ``nn.Linear`` are left out, since those that libraries have (attention's output) are used by their weight
    and not by being called.
    """
    sites = []
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d) and type(child) is not nn.Conv2d:
            sites.append(_tried_out(name, child))
        elif isinstance(child, nn.Conv2d):
            sites.append(Site(name, child, _is_centred(child), _owns_weight(child)))
        elif type(child) is nn.Linear:
            sites.append(Site(name, child, has_centre=True, applies_weight=_owns_weight(child)))
    return sites


def shared_modules(module: nn.Module) -> dict[str, list[str]]:
    """The modules that `module` holds under several names: all names by the first."""
    names: dict[int, list[str]] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        names.setdefault(id(child), []).append(name)
    return {found[0]: found for found in names.values() if len(found) > 1}


def tied_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters that are one tensor under several names."""
    named = list(module.named_parameters(remove_duplicate=False))
    times = Counter(id(parameter) for _, parameter in named)
    return {name for name, parameter in named if times[id(parameter)] > 1}


def _owns_weight(layer: nn.Module) -> bool:
    # Hooks of the old `weight_norm` and `spectral_norm` make the weight anew before each call.
    return "weight" in layer._parameters and not layer._forward_pre_hooks  # noqa: SLF001 - no public way to ask


def _is_centred(conv: nn.Conv2d) -> bool:
    sizes, dilations = _pair(conv.kernel_size), _pair(conv.dilation)
    if conv.padding == "same":
        return all(k % 2 == 1 for k in sizes)
    padding = (0, 0) if isinstance(conv.padding, str) else _pair(conv.padding)
    return all(
        k % 2 == 1 and p == d * (k - 1) // 2 for k, p, d in zip(sizes, padding, dilations, strict=True)
    )


def _tried_out(name: str, conv: nn.Conv2d) -> Site:
    """A site whose two properties are found by running a copy of the convolution on noise.

    Maps of even and of odd size are both tried: a padding that depends on the size of the map is in place for
    some sizes only.
    """
    generator = torch.Generator().manual_seed(0)
    reach = [d * (k - 1) + 1 for k, d in zip(_pair(conv.kernel_size), _pair(conv.dilation), strict=True)]
    maps = [
        torch.randn(1, conv.in_channels, reach[0] + more, reach[1] + more, generator=generator)
        for more in (2, 3)
    ]
    trial = copy.deepcopy(conv).cpu().float().eval()
    shape = trial.weight.shape

    def run(weight: Tensor, x: Tensor) -> Tensor:
        trial.weight.data = weight
        return trial(x)

    try:
        with torch.no_grad():
            if trial.bias is not None:
                trial.bias.data.zero_()
            one, other = (torch.randn(shape, generator=generator) for _ in range(2))
            is_linear = all(_equal(run(one + other, x), run(one, x) + run(other, x)) for x in maps)
            if not is_linear:
                return Site(name, conv, _is_centred(conv), applies_weight=False)
            rows, columns = _pair(conv.stride)
            middle = torch.zeros(shape)
            height, width = (k // 2 for k in shape[2:])
            middle[:, :, height, width] = one[:, :, height, width]
            pointwise = one[:, :, height : height + 1, width : width + 1]
            has_centre = all(
                _equal(
                    run(middle, x),
                    nn.functional.conv2d(x[:, :, ::rows, ::columns], pointwise, groups=conv.groups),
                )
                for x in maps
            )
    except (RuntimeError, TypeError, ValueError, AttributeError):
        # It cannot be run by itself, so nothing is known of it.
        return Site(name, conv, has_centre=False, applies_weight=False)
    return Site(name, conv, has_centre, applies_weight=True)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    first, second = numbers
    return (first, second)

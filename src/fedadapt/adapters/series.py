"""The series adapter: a residual 1x1 convolution after a frozen one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedadapt.adapters.adapter import TRAINED, Adapter, Branches
from fedadapt.adapters.hosts import After
from fedadapt.adapters.parallel import Init, Matrix, draw
from fedadapt.adapters.placement import Placement
from fedadapt.adapters.sites import Site
from fedadapt.registry import register


@register("adapter", "series")
def series(*, init: Init = "zero", sites: Placement = Placement()) -> Adapter:
    """A residual 1x1 convolution after every 3x3, before its norm: D * D values.

    ``y = z + scaling * A z``, ``z = conv(x; W)``. It starts at zero and is linear in A. After a grouped
    convolution A has the same groups. It merges for any kernel, stride and padding, since it is a matrix times
    what the convolution gives: ``W' = (I + scaling A) W`` along the output channels, and likewise the bias.

    Args:
        init: as for the parallel adapter.
        sites: where the branches sit.

    Source:
        S.-A. Rebuffi, H. Bilen, A. Vedaldi, *Efficient Parametrization of Multi-Domain Deep Neural Networks*,
        CVPR 2018, equation 1.

    Differs:
        No norm inside the branch, which the authors' code has; with moving statistics it would not merge.
    """

    def build(site: Site, generator: torch.Generator) -> nn.Module:
        branch = Matrix(site.out_channels, site.out_channels, site.groups)
        draw(branch.weight, init, generator)
        return After(site.module, branch, sites.scaling, channels_first=True)

    def fold(
        site: Site, weight: Tensor, bias: Tensor | None, branch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        matrix = sites.scaling * branch["weight"].unflatten(0, (site.groups, -1))

        def after(tensor: Tensor) -> Tensor:
            rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
            added = torch.matmul(matrix, rows.unflatten(0, (site.groups, -1))).flatten(0, 1)
            return tensor + added.reshape(tensor.shape)

        return after(weight), None if bias is None else after(bias)

    return Adapter("series", TRAINED, Branches(("conv",), sites, build, fold))

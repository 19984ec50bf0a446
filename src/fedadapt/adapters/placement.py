"""Which sites of a backbone get a branch: the options that all adapters with branches share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from fedadapt.adapters.probe import Seen
from fedadapt.adapters.sites import Site
from fedadapt.errors import AttachError


@dataclass(frozen=True)
class Placement:
    """Where branches sit, how large they are there, and how strongly they count.

    Args:
        layers: ``"conv"``, ``"linear"``; empty for all that the adapter is made for.
        kernel_sizes: the convolutions that get a branch, by the size of their square kernel; empty for those
            the adapter is made for in this family of networks, 3x3 as a rule.
        include: globs over the names of sites; a site has to match one. Empty for all.
        exclude: globs over the names of sites; a site may match none.
        stages: counted from 1 by the size of the map that comes out of a site, largest first; empty for all.
        last: only so many sites, the last ones of what the other options leave; None for all.
        sizes: rank (or groups) at the sites that match a glob, instead of the adapter's own; 0 for no branch.
            The first glob that matches counts.
        norms: whose affine is trained: of ``"all"`` norms, or of those that images come to ``"above"`` the first
            branch, so that no gradient changes anything below it.
        scaling: factor on the output of every branch.
        dropout: share of the values of every branch's input that are dropped in training, drawn by client.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    layers: tuple[Literal["conv", "linear"], ...] = ()
    kernel_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    stages: tuple[Annotated[int, Field(ge=1)], ...] = ()
    last: Annotated[int, Field(ge=1)] | None = None
    sizes: Mapping[str, Annotated[int, Field(ge=0)]] = field(default_factory=dict)
    norms: Literal["all", "above"] = "all"
    scaling: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def picks(self) -> bool:
        """Whether it asks for some sites rather than for all."""
        return bool(self.include or self.exclude or self.stages or self.last or self.sizes)

    def size(self, site: Site, default: int) -> int:
        """Rank or groups of the branch at `site`."""
        glob = self._glob(site)
        return default if glob is None else self.sizes[glob]

    def resting(self, places: Sequence[str], chosen: Sequence[Site]) -> set[str]:
        """The places at which norms rest.

        Args:
            places: in the order in which images come to them.
            chosen: the sites that have a branch.

        Raises:
            AttachError: norms above the first branch are asked for, and there is none.
        """
        if self.norms == "all":
            return set()
        if not chosen:
            raise AttachError(
                "adapter.sites.norms is 'above', but this backbone has no place for a branch; leave it at 'all', or choose "
                "another adapter"
            )
        return set(places[: min(places.index(site.name) for site in chosen)])

    def untaken(
        self, chosen: Sequence[Site], option: str, default: int, taken: Callable[[Site], int]
    ) -> tuple[str, list[Site]] | None:
        """A size that no site takes as it is, and the sites that were to.

        Args:
            chosen: the sites that get a branch.
            option: of the adapter, its name.
            default: and its value.
            taken: the size that a site takes.

        Returns:
            The option with its value, for a message; None if every size is taken somewhere.
        """
        asked = {f"adapter.{option}={default}": [site for site in chosen if self._glob(site) is None]} | {
            f"adapter.sites.sizes[{glob!r}]={size}": [site for site in chosen if self._glob(site) == glob]
            for glob, size in self.sizes.items()
        }
        for text, sites in asked.items():
            if sites and all(taken(site) != self.size(site, default) for site in sites):
                return text, sites
        return None

    def _glob(self, site: Site) -> str | None:
        return next((glob for glob in self.sizes if fnmatchcase(site.name, glob)), None)


def choose(
    placement: Placement,
    sites: Sequence[Site],
    seen: Mapping[str, Seen],
    *,
    kinds: Sequence[str],
    kernel_sizes: Sequence[int],
    fits: Callable[[Site], bool],
) -> list[Site]:
    """The sites that get a branch, in their order.

    Args:
        placement: what is asked for.
        sites: of the backbone, its head left out.
        seen: what passes through each.
        kinds: the kinds of layer the adapter is made for.
        kernel_sizes: and the square kernels; empty for any kernel.
        fits: whether the adapter can sit at a site.

    Raises:
        AttachError: a glob or stage matches nothing, or together they leave nothing.
    """
    kernels = placement.kernel_sizes or kernel_sizes
    wanted = set(placement.layers or kinds) & set(kinds)
    able = [
        site
        for site in sites
        if site.kind in wanted and seen[site.name].by_image and fits(site) and _has_kernel(site, kernels)
    ]
    for glob in (*placement.include, *placement.exclude, *placement.sizes):
        if able and not any(fnmatchcase(site.name, glob) for site in able):
            known = [site.name for site in able]
            near = difflib.get_close_matches(glob, known, n=3, cutoff=0.3) or known[:3]
            raise AttachError(
                f"{glob!r} matches none of the {len(able)} sites that the adapter fits; near: {', '.join(near)}"
            )
    sizes = sorted({seen[site.name].size for site in able}, reverse=True)
    if able and placement.stages and max(placement.stages) > len(sizes):
        raise AttachError(
            f"there is no stage {max(placement.stages)}: the sites that the adapter fits have maps of "
            f"{len(sizes)} sizes; use stages 1 to {len(sizes)}"
        )
    stages = {sizes[stage - 1] for stage in placement.stages} if able else set()
    chosen = [
        site
        for site in able
        if (not placement.include or any(fnmatchcase(site.name, glob) for glob in placement.include))
        and not any(fnmatchcase(site.name, glob) for glob in placement.exclude)
        and (not stages or seen[site.name].size in stages)
        and placement.size(site, 1) > 0
    ]
    if able and not chosen:
        raise AttachError(
            f"adapter.sites leaves none of the {len(able)} sites that the adapter fits; loosen include, exclude, stages or "
            "sizes"
        )
    return chosen[-placement.last :] if placement.last else chosen


def _has_kernel(site: Site, kernels: Sequence[int]) -> bool:
    height, width = site.kernel_size
    return site.kind == "linear" or not kernels or (height == width and height in kernels)

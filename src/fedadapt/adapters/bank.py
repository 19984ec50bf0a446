"""Several adapters on one backbone: switched by name, mixed, or many of them in one batch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fedadapt.adapters.attach import AdaptedModel
from fedadapt.adapters.store import load_adapter
from fedadapt.errors import AttachError
from fedadapt.params import Params, pick, stack

SLACK = 1.25
"""How many rows a batch of many adapters may have for each image that was asked for."""


class AdapterBank:
    """Named sets of tensors for one adapted model, such as the personal adapters of many clients.

    All that the model trains belongs to an adapter here: branches, norms and head.

    Args:
        model: what the adapters are for; the backbone is in memory once.

    Example:
        >>> from fedadapt.adapters import attach
        >>> from fedadapt.registry import create
        >>> generator = torch.Generator().manual_seed(0)
        >>> backbone = create("backbone", "resnet20")(10, generator)
        >>> model = attach(backbone, create("adapter", "parallel"), create("norm policy", "frozen"), generator)
        >>> bank = AdapterBank(model)
        >>> bank.add("ann", model.start)
        >>> bank.add("bob", {name: tensor + 0.01 for name, tensor in model.start.items()})
        >>> bank.predict(torch.zeros(3, 3, 32, 32), ["bob", "ann", "bob"]).shape
        torch.Size([3, 10])
        >>> bank.add("both", bank.mix({"ann": 0.5, "bob": 0.5}))
    """

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        self._adapters: dict[str, Params] = {}
        self._stacked: Params | None = None

    @property
    def names(self) -> list[str]:
        """The adapters that are here, in the order they came."""
        return list(self._adapters)

    def __getitem__(self, name: str) -> Params:
        """The tensors of an adapter, without client axis.

        Raises:
            AttachError: there is none of that name.
        """
        if name not in self._adapters:
            near = difflib.get_close_matches(name, self._adapters, n=3, cutoff=0.3) or self.names[:3]
            raise AttachError(
                f"there is no adapter {name!r} among {len(self._adapters)}; near: {', '.join(near) or 'none'}"
            )
        return self._adapters[name]

    def add(self, name: str, params: Params) -> None:
        """Takes in an adapter.

        Raises:
            AttachError: the name is taken, or the tensors are not those of the model, or not finite.
        """
        if name in self._adapters:
            raise AttachError(f"adapter {name!r} is there already; remove it first, or choose another name")
        self.model.check(params, f"adapter {name!r}")
        start = self.model.start
        own = next(iter(start.values()))
        self._adapters[name] = {n: params[n].detach().to(own.device) for n in start}
        self._stacked = None

    def load(self, name: str, path: Path) -> None:
        """Takes in an adapter from a file.

        Raises:
            AttachError: the name is taken, or the file is for something else; see `load_adapter`.
        """
        self.add(name, load_adapter(self.model, path))

    def remove(self, name: str) -> None:
        """Lets go of an adapter.

        Raises:
            AttachError: there is none of that name.
        """
        self[name]
        del self._adapters[name]
        self._stacked = None

    def predict(self, images: Float[Tensor, "N C H W"], names: str | Sequence[str]) -> Float[Tensor, "N D"]:
        """Logits, each image under an adapter of its own.

        All images go through the backbone as one batch. Those of an adapter lie together on the client axis, in
        tiles of one width: as wide as leaves no more than a quarter of the rows to padding, so that an adapter
        that many images want is not padded to by all others, and few copies of adapters are made.

        Args:
            images: normalised.
            names: of the adapters, one for each image; or one name for all.

        Raises:
            AttachError: a name is unknown, or there are not as many as images.
        """
        if isinstance(names, str):
            return self._run({n: t[None] for n, t in self[names].items()}, images)
        if len(names) != len(images):
            raise AttachError(f"{len(images)} images need as many adapter names, got {len(names)}")
        wanted: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            wanted.setdefault(name, []).append(place)
        for name in wanted:
            self[name]
        if not wanted:
            raise AttachError("there are no images to predict; give at least one")
        if len(wanted) == 1:
            return self.predict(images, names[0])
        if self.model.max_clients is not None:
            return self._one_by_one(images, wanted)
        numbers = {name: number for number, name in enumerate(self._adapters)}
        slots, rows = tile({numbers[name]: places for name, places in wanted.items()})
        flat = rows.flatten().to(images.device)
        logits = self._run(self._gathered(slots), images[flat])
        answer = logits.new_empty(len(images), logits.shape[1])
        # What pads a tile is an image of the same adapter, so it is written twice and means the same.
        answer[flat] = logits
        return answer

    def mix(self, weights: Mapping[str, float]) -> Params:
        """Adapters added with weights, as steps from the start: ``start + sum_a w_a (p_a - start)``.

        With weights that sum to 1 it is their mean. For an adapter that is linear in what it trains the maps of
        its layers mix with the tensors, exactly; with others they do not, and those are refused.

        Args:
            weights: by name; any numbers, unless statistics move.

        Raises:
            AttachError: the adapter or head is not linear, a name is unknown, or statistics would be mixed by
                weights that are not shares.
        """
        model = self.model
        for kind, one in (("adapter", model.adapter), ("head", model.head)):
            if not one.linear:
                raise AttachError(
                    f"{kind} {one.name!r} is not linear in its tensors: their mix is not the mix of what they compute; "
                    "mix logits of `predict`, or merge each and mix the networks' weights"
                )
        shares = all(weight >= 0 for weight in weights.values()) and abs(sum(weights.values()) - 1) < 1e-6
        if model.moving and not shares:
            raise AttachError(
                f"norm policy {model.policy.name!r} keeps statistics, which can only be averaged: weights must be 0 or more "
                f"and sum to 1, got {sum(weights.values()):g}"
            )
        mixed = {}
        for name, start in model.start.items():
            own = start.double()
            steps = (weight * (self[a][name].double() - own) for a, weight in weights.items())
            mixed[name] = (own + sum(steps, torch.zeros_like(own))).to(start.dtype)
        return mixed

    def _one_by_one(self, images: Tensor, wanted: Mapping[str, list[int]]) -> Tensor:
        """For what trains the backbone's own weights: there is nothing that adapters share."""
        parts = {name: self.predict(images[places], name) for name, places in wanted.items()}
        some = next(iter(parts.values()))
        answer = some.new_empty(len(images), some.shape[1])
        for name, places in wanted.items():
            answer[places] = parts[name]
        return answer

    def _gathered(self, slots: Sequence[int]) -> Params:
        """The adapters of these numbers, stacked."""
        if self._stacked is None:
            self._stacked = stack(list(self._adapters.values()))
            # Views, so that the tensors are in memory once.
            for place, name in enumerate(self._adapters):
                self._adapters[name] = pick(self._stacked, place)
        if list(slots) == list(range(len(self._adapters))):
            return self._stacked
        index = torch.tensor(slots, device=next(iter(self._stacked.values())).device)
        return {name: tensor[index] for name, tensor in self._stacked.items()}

    def _run(self, params: Params, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.model(params, images)


def tile(wanted: Mapping[int, Sequence[int]]) -> tuple[list[int], Tensor]:
    """Packs the rows of each adapter into tiles of one width.

    Args:
        wanted: rows by the number of their adapter.

    Returns:
        The adapter of each tile, and the rows of the tiles, ``[tiles, width]``; a tile that is not full repeats
        its last row.

    Example:
        >>> slots, rows = tile({4: [0, 2, 3, 5], 7: [1, 4]})
        >>> slots, rows.tolist()
        ([4, 4, 7], [[0, 2], [3, 5], [1, 4]])
    """
    counts = [len(rows) for rows in wanted.values()]
    width = max(counts)
    while width > 1 and width * sum(-(-count // width) for count in counts) > SLACK * sum(counts):
        width = -(-width // 2)
    slots, tiles = [], []
    for number, rows in sorted(wanted.items()):
        for begin in range(0, len(rows), width):
            own = list(rows[begin : begin + width])
            slots.append(number)
            tiles.append(own + own[-1:] * (width - len(own)))
    return slots, torch.tensor(tiles)

"""What the frozen trunk of a model makes of images, computed once and kept while a run lasts.

Where images are not augmented, an image has the same features below the first trained place in every epoch and
round: a step is then a step of what lies above, of the head alone or of the last stage.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from threading import Lock

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedadapt.adapters import AdaptedModel
from fedadapt.adapters.trunk import cut_trunk
from fedadapt.data.augment import Augment, normalise
from fedadapt.data.batches import Batch
from fedadapt.data.dataset import Split

MEMORY_BYTES = 2**30
"""What all features of a split may take; those of a larger one are computed anew each time."""

WORTH_FLOPS = 500
"""What it has to take to compute one value for it to be worth keeping: twice what a layer of few channels takes."""

BLOCK = 16
"""Images that go through the network together, always so many, so that no bit depends on who asks first."""


class Features:
    """The features of the images of a split.

    Args:
        trunk: makes them, of blocks of normalised images.
        model: trained on them instead of on images.
        split: where the images are.
        mean: pixel moments for normalisation.
        std: likewise.
    """

    def __init__(
        self,
        trunk: nn.Module,
        model: AdaptedModel,
        split: Split,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.model = model
        # What batches are cut from: images are looked at here alone.
        self.labels_only = Split(split.images[:, :0], split.labels)
        self._trunk, self._split, self._mean, self._std = trunk, split, mean, std
        self._device = next(iter(model.start.values())).device
        self._kept: list[Float[Tensor, "n ..."]] = []
        self._lock = Lock()
        self._known = torch.zeros(len(split), dtype=torch.bool)
        with FlopCounterMode(display=False) as counter:
            same = self._look(torch.zeros(BLOCK, dtype=torch.int64))
        self._like = same[:1].clone(memory_format=torch.preserve_format)
        self._flops_per_value = counter.get_total_flops() / same.numel()
        self._is_steady = torch.equal(same, same[:1].expand_as(same))

    def beside(self, model: AdaptedModel) -> Features:
        """The same features for a copy of the model; what one computes, both have."""
        other = copy.copy(self)
        other.model = model
        return other

    @property
    def num_bytes(self) -> int:
        """What the features of all images take."""
        return len(self._split) * self._like.nbytes

    @property
    def pays(self) -> bool:
        """Whether they fit, take less time to fetch than to compute, and are the same at each place of a block."""
        return self.num_bytes <= MEMORY_BYTES and self._flops_per_value >= WORTH_FLOPS and self._is_steady

    def inputs(self, batch: Batch) -> Float[Tensor, "N ..."]:
        """The features of a batch's images."""
        with self._lock:
            if not self._kept:
                # Laid out as the trunk gives them, maps with channels last for instance.
                order = sorted(range(self._like.ndim), key=self._like.stride, reverse=True)
                shape = (len(self._split), *self._like.shape[1:])
                self._kept.append(
                    torch.empty_permuted(shape, order, dtype=self._like.dtype, device=self._device)
                )
            unknown = batch.places[~self._known[batch.places]].unique()
            for begin in range(0, len(unknown), BLOCK):
                new = unknown[begin : begin + BLOCK]
                self._kept[0][new.to(self._device)] = self._look(new)
                self._known[new] = True
        return self._kept[0][batch.places.to(self._device)]

    def map_values(self, image: Sequence[int]) -> tuple[int, int]:
        """Values that a step holds of one image, the most at once and all together: features and what is above."""
        largest, together = self.model.map_values(image)
        return max(largest, self._like.numel()), together + self._like.numel()

    def _look(self, places: Tensor) -> Float[Tensor, "n ..."]:
        images = self._split.images[torch.cat([places, places[:1].expand(BLOCK - len(places))])]
        normalised = normalise(images.to(self._device), self._mean, self._std, self.model.dtype)
        with torch.no_grad():
            found: Tensor = self._trunk(normalised)
        return found[: len(places)]


def frozen_features(
    model: AdaptedModel, split: Split, augment: Augment, mean: tuple[float, ...], std: tuple[float, ...]
) -> Features | None:
    """The features to keep; None where they change, take more than `MEMORY_BYTES`, or are not worth it."""
    parts = None if augment.pad or augment.flip else cut_trunk(model)
    if parts is None:
        return None
    features = Features(*parts, split, mean, std)
    return features if features.pays else None

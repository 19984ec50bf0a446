"""What the frozen part of a model makes of images, computed once and kept while a run lasts.

Where only the head is trained and images are not augmented, an image has the same features in every epoch and round:
a step is then a step of the head alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from fedadapt.adapters import AdaptedModel
from fedadapt.adapters.class_means import head_inputs
from fedadapt.adapters.probe import noise
from fedadapt.data.augment import Augment, normalise
from fedadapt.data.batches import Batch
from fedadapt.data.dataset import Split
from fedadapt.params import Params

MEMORY_BYTES = 2**30
"""What all features of a split may take; those of a larger one are computed anew each time."""

BLOCK = 16
"""Images that go through the network together, always so many, so that no bit depends on who asks first."""


class Features:
    """The head of a model as a model of its own, and the features of the images of a split.

    Args:
        model: of which nothing but the head is trained.
        split: where the images are.
        mean: pixel moments for normalisation.
        std: likewise.
    """

    def __init__(
        self, model: AdaptedModel, split: Split, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.moving: list[str] = []
        # What batches are cut from: images are looked at here alone.
        self.labels_only = Split(split.images[:, :0], split.labels)
        self._model, self._split, self._mean, self._std = model, split, mean, std
        self._device = next(iter(model.start.values())).device
        self._known = torch.zeros(len(split), dtype=torch.bool)

    @cached_property
    def _kept(self) -> Float[Tensor, "n F"]:
        return torch.empty(
            (len(self._split), _width(self._model)), dtype=self._model.dtype, device=self._device
        )

    def inputs(self, batch: Batch) -> Float[Tensor, "N F"]:
        """The features of a batch's images."""
        unknown = batch.places[~self._known[batch.places]].unique()
        for begin in range(0, len(unknown), BLOCK):
            new = unknown[begin : begin + BLOCK]
            images = self._split.images[torch.cat([new, new[:1].expand(BLOCK - len(new))])].to(self._device)
            found = self._look(normalise(images, self._mean, self._std, torch.float32))
            self._kept[new.to(self._device)] = found[: len(new)]
            self._known[new] = True
        return self._kept[batch.places.to(self._device)]

    def __call__(
        self,
        params: Params,
        images: Float[Tensor, "N F"],
        *,
        mask: Tensor | None = None,
        training: bool = False,
        noise: Sequence[int] = (),
    ) -> Float[Tensor, "N D"]:
        """Logits in fp32 of features in the place of images; nothing else of a call concerns a head."""
        del mask, training, noise
        head = self._model.backbone.head
        own = {name.removeprefix(f"{head}."): tensor for name, tensor in params.items()}
        logits: Tensor = torch.func.functional_call(self._model.module.get_submodule(head), own, (images,))
        return logits.float()

    def with_features(
        self,
        params: Params,
        images: Float[Tensor, "N F"],
        *,
        mask: Tensor | None = None,
        training: bool = False,
        noise: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N F"]]:
        """Logits, and the features themselves."""
        return self(params, images, mask=mask, training=training, noise=noise), images.float()

    def map_values(self, image: Sequence[int]) -> tuple[int, int]:
        """Values that a step holds of one image, the most at once and all together: its features."""
        del image
        return _width(self._model), _width(self._model)

    def _look(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        return head_inputs(self._model.module, self._model.backbone.head, images.to(self._model.dtype))

    def is_whole(self) -> bool:
        """Whether the head comes last, so that its output is the model's, of a head with large values as well."""
        images = noise(self._model.backbone.image, 2).to(self._device)
        generator = torch.Generator().manual_seed(0)
        stacked = {
            name: torch.randn(1, *tensor.shape, generator=generator).to(self._device)
            for name, tensor in self._model.start.items()
        }
        with torch.inference_mode():
            there, here = self._model(stacked, images), self(stacked, self._look(images))
        return there.shape == here.shape and torch.allclose(there, here, rtol=1e-3, atol=1e-4)


def frozen_features(
    model: AdaptedModel, split: Split, augment: Augment, mean: tuple[float, ...], std: tuple[float, ...]
) -> Features | None:
    """The features to keep; None where they change, take more than `MEMORY_BYTES`, or go through more than a head."""
    head_alone = all(name.startswith(f"{model.backbone.head}.") for name in model.start)
    still = head_alone and not augment.pad and not augment.flip
    if not still or len(split) * _width(model) * model.dtype.itemsize > MEMORY_BYTES:
        return None
    features = Features(model, split, mean, std)
    return features if features.is_whole() else None


def _width(model: AdaptedModel) -> int:
    """The features of an image."""
    return int(model.backbone.module.get_submodule(model.backbone.head).in_features)  # type: ignore[arg-type]

"""The exchange before the first round: every client is asked for its class means, which the head starts from.

It is round 0. A request says nothing but that it is asked; a reply has one section, the moments of the client's
features by class in fp32, which count as bytes of the head. Moments add up, so the head is the one that all samples
together would give, whoever holds which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from jaxtyping import Int64
from torch import Tensor

from fedadapt.adapters import AdaptedModel
from fedadapt.adapters.class_means import ClassMeans, ClassMoments, class_moments
from fedadapt.codecs import Key, Layout, make_codec
from fedadapt.data.augment import normalise
from fedadapt.data.dataset import Split
from fedadapt.errors import ClientError, ConfigError, FrameError
from fedadapt.federation.frame import Frame, Kind, framing_bytes
from fedadapt.federation.messages import EVERYONE, Reply, Request, Wire
from fedadapt.params import Group, expand, is_finite
from fedadapt.seeds import Seeds
from fedadapt.training.evaluate import BATCH_IMAGES

ROUND = 0
"""The number of the exchange before the first round."""

CODEC, KEY = make_codec("float32"), Key(Seeds(0), "class means")
"""Moments are exact, and nothing is drawn for them: a difference of rounded squares may be anything."""


@dataclass(frozen=True)
class WarmStart:
    """What both sides know of the exchange.

    Args:
        model: its features are those of the start.
        wire: of the run.
        means: what is asked for.
    """

    model: AdaptedModel
    wire: Wire
    means: ClassMeans

    @property
    def head(self) -> tuple[str, str]:
        """Names of weight and bias in the model."""
        return f"{self.model.backbone.head}.weight", f"{self.model.backbone.head}.bias"

    @property
    def layout(self) -> Layout:
        """Names and shapes of what a client says."""
        return self.means.layout(*self.model.start[self.head[0]].shape)

    @property
    def message_bytes(self) -> dict[str, int]:
        """Bytes of a request and of a reply."""
        num_values = sum(shape.numel() for shape in self.layout.values())
        return {"download": framing_bytes(0, 0), "upload": 4 * num_values + framing_bytes(0, 1)}


def warm_start(model: AdaptedModel, wire: Wire) -> WarmStart | None:
    """The exchange before the first round; None if the head starts as the backbone has it.

    Raises:
        ConfigError: the head does not travel, so the server cannot start it.
    """
    if model.head.start is None:
        return None
    if Group.HEAD not in wire.plan.groups():
        raise ConfigError(
            "head.start sets the head that the server sends, but here each client keeps its own; leave head.start out, or "
            "choose an algorithm that shares the head"
        )
    return WarmStart(model, wire, model.head.start)


def answer_warm_start(
    warm: WarmStart,
    request: Request,
    split: Split,
    indices: Int64[Tensor, " _"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Reply:
    """A client's answer: the moments of its training samples' features, without augmentation.

    Args:
        warm: what is asked for.
        request: of round 0.
        split: the images held here.
        indices: which of them the client trains on.
        mean: pixel moments for normalisation.
        std: likewise.
    """
    try:
        warm.wire.open(request.frame, Kind.DOWNLOAD, ROUND, EVERYONE, 0)
        moments = _moments(warm, split, indices, mean, std).to_params()
        if not is_finite(moments):
            raise ClientError("features are infinite or NaN; look at the data and the backbone's weights")
    except (FrameError, ClientError) as error:
        return Reply(ROUND, request.client, failure=str(error))
    section = CODEC.encode(moments, KEY)
    return Reply(
        ROUND,
        request.client,
        Frame(Kind.UPLOAD, ROUND, request.client, warm.wire.identity, (), (section,)).pack(),
    )


def _moments(
    warm: WarmStart,
    split: Split,
    indices: Int64[Tensor, " _"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ClassMoments:
    model, num_classes = warm.model, len(warm.model.start[warm.head[1]])
    params, device = expand(model.start, 1), next(iter(model.start.values())).device
    parts = []
    with torch.inference_mode():
        for rows in indices.split(BATCH_IMAGES):
            images = normalise(split.images[rows].to(device), mean, std, torch.float32)
            _, features = model.with_features(params, images)
            parts.append(
                class_moments(features.cpu(), split.labels[rows], num_classes, products=warm.means.covariance)
            )
    return reduce(add, parts)

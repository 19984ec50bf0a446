"""A head from class means: what one exchange of sums and counts can say before any training.

The moments of parties add up, so what the server gets is exact under any skew of labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedadapt.errors import ClientError
from fedadapt.params import Params


@dataclass(frozen=True)
class ClassMeans:
    """A head that starts from class means, and what parties say for it.

    Args:
        covariance: whether they send ``x x^T`` too, for a full covariance within classes.
        shrinkage: see `head_from_moments`.
    """

    covariance: bool
    shrinkage: float

    def layout(self, num_classes: int, channels: int) -> dict[str, torch.Size]:
        """Names and shapes of what a party sends, in order; of ``x x^T`` the upper triangle."""
        shapes: dict[str, tuple[int, ...]] = {
            "counts": (num_classes,),
            "sums": (num_classes, channels),
            "square": (1,),
        }
        if self.covariance:
            shapes["products"] = (channels * (channels + 1) // 2,)
        return {name: torch.Size(shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class ClassMoments:
    """Sums over the features x of some samples; those of several parties are added.

    Args:
        counts: samples of each class.
        sums: of x, by class.
        square: of ``|x|^2``, over all classes.
        products: of ``x x^T``, over all classes; None if it is not asked for.
    """

    counts: Float[Tensor, " D"]
    sums: Float[Tensor, "D C"]
    square: Float[Tensor, ""]
    products: Float[Tensor, "C C"] | None = None

    def __add__(self, other: ClassMoments) -> ClassMoments:
        both = self.products is not None and other.products is not None
        return ClassMoments(
            self.counts + other.counts,
            self.sums + other.sums,
            self.square + other.square,
            self.products + other.products if both else None,  # type: ignore[operator]
        )

    def to_params(self) -> Params:
        """What travels, in fp32; see `ClassMeans.layout`."""
        params = {"counts": self.counts, "sums": self.sums, "square": self.square[None]}
        if self.products is not None:
            rows, columns = torch.triu_indices(*self.products.shape)
            params["products"] = self.products[rows, columns]
        return {name: tensor.float() for name, tensor in params.items()}

    @classmethod
    def from_params(cls, params: Mapping[str, Tensor]) -> ClassMoments:
        """The moments that `to_params` gave, in float64."""
        counts, sums = params["counts"].double(), params["sums"].double()
        products = None
        if "products" in params:
            products = torch.zeros(sums.shape[1], sums.shape[1], dtype=torch.float64)
            rows, columns = torch.triu_indices(*products.shape)
            products[rows, columns] = products[columns, rows] = params["products"].double()
        return cls(counts, sums, params["square"][0].double(), products)


def class_moments(
    features: Float[Tensor, "N C"], labels: Int64[Tensor, " N"], num_classes: int, *, products: bool = False
) -> ClassMoments:
    """The moments of samples, in float64.

    Args:
        features: what goes into the head.
        labels: from 0.
        num_classes: D.
        products: whether to sum ``x x^T`` too, for `head_from_moments` with a full covariance.
    """
    x = features.double()
    counts = torch.bincount(labels, minlength=num_classes).double()
    sums = torch.zeros(num_classes, x.shape[1], dtype=torch.float64).index_add_(0, labels, x)
    return ClassMoments(counts, sums, x.square().sum(), x.T @ x if products else None)


def head_from_moments(
    moments: ClassMoments, *, shrinkage: float = 0.1
) -> tuple[Float[Tensor, "D C"], Float[Tensor, " D"]]:
    """Weight and bias of the head that separates Gaussian classes with a shared covariance.

    ``logit_d = (w_d . x + b_d) / c``, ``w_d = S^-1 m_d``, ``b_d = -m_d . S^-1 m_d / 2``, with m_d the class means and
    S the covariance within classes: without products a multiple of the identity, which makes it the nearest class
    mean; with them the full matrix (linear discriminant analysis). Classes are equally likely; a class without
    samples gets the mean of all.

    What the rows of w share is taken off, which changes no probability, and c gives the rest a mean square length of 1.
    Features are not Gaussian, and without products not uncorrelated either: as they are such logits are several times
    too sure, and the first steps of training, at a rate that suits any other head, would undo more than they learn.

    Args:
        moments: of all parties together.
        shrinkage: 0..1, how much of a full covariance is replaced by its mean variance.

    Returns:
        Weight and bias in fp32.

    Raises:
        ClientError: there is one class, no more samples than classes, or they do not vary.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [9.0], [11.0]])
        >>> weight, bias = head_from_moments(class_moments(x, torch.tensor([0, 0, 1, 1]), 2))
        >>> weight.flatten().tolist(), bias.tolist()
        ([-1.0, 1.0], [5.5, -5.5])

    Source:
        G. Legate et al., *Guiding The Last Layer in Federated Learning with Pre-Trained Models*, NeurIPS 2023,
        algorithm 1, for class means; R. A. Fisher, *The use of multiple measurements in taxonomic problems*,
        Annals of Eugenics 1936, for the covariance.

    Differs:
        FedNCM divides every mean by its own length, which leaves the nearest mean by angle; here one length divides
        all, which leaves the nearest mean.
    """
    counts, sums = moments.counts, moments.sums
    total, present = counts.sum(), (counts > 0).sum()
    if total <= present or present < 2:
        raise ClientError(
            "a head from class means needs two classes and more samples than classes, got "
            f"{int(total)} samples of {int(present)} classes; start without it"
        )
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], sums.sum(0) / total)
    between = counts[:, None] * means
    channels = sums.shape[1]
    variance = (moments.square - (between * means).sum()) / ((total - present) * channels)
    if not variance > 0:
        raise ClientError("a head from class means needs features that vary within classes; start without it")
    if moments.products is None:
        weight = means / variance
    else:
        covariance = (moments.products - means.T @ between) / (total - present)
        shrunk = (1 - shrinkage) * covariance
        shrunk.diagonal().add_(shrinkage * variance)
        weight = torch.linalg.lstsq(shrunk, means.T).solution.T
    bias = -(weight * means).sum(1) / 2
    weight, bias = weight - weight.mean(0), bias - bias.mean()
    length = weight.square().sum(1).mean().sqrt()
    return (weight / length).float(), (bias / length).float()

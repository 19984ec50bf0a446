"""What is measured of a model, from counts: one pass over the logits is enough, however many samples there are.

Everything has a leading client axis K, so that a global model is one client and personal ones are many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

CALIBRATION_BINS = 15
"""As in the experiments of the source of `calibration_error`."""

NAMES = ("accuracy", "loss", "balanced_accuracy", "macro_f1", "calibration_error", "auroc")
"""Every metric; the last one is defined for tasks of two classes alone."""

LOWER_IS_BETTER = frozenset({"loss", "calibration_error"})
"""The metrics of which the highest value is the worst."""


@dataclass(frozen=True)
class Counts:
    """What the models of K clients said of their samples; those of several batches are joined by ``+``.

    Args:
        support: samples of each class.
        predicted: samples taken for each class.
        right: samples of each class taken for it.
        loss: summed cross-entropy.
        confident: samples by confidence, which is the probability of the class that a sample is taken for; bin m
            of M holds those in ``((m - 1) / M, m / M]``.
        correct: those of `confident` that are taken for their class.
        confidence: summed over the samples of each bin.
        margins: of a task of two classes, logit of class 1 less that of class 0 of every sample; else empty.
        positive: whether a sample is of class 1; likewise.
        real: whether there is a sample; likewise.
    """

    support: Int64[Tensor, "K D"]
    predicted: Int64[Tensor, "K D"]
    right: Int64[Tensor, "K D"]
    loss: Float[Tensor, " K"]
    confident: Int64[Tensor, "K M"]
    correct: Int64[Tensor, "K M"]
    confidence: Float[Tensor, "K M"]
    margins: Float[Tensor, "K N"]
    positive: Bool[Tensor, "K N"]
    real: Bool[Tensor, "K N"]

    def __add__(self, other: Counts) -> Counts:
        sums = (
            getattr(self, name) + getattr(other, name)
            for name in ("support", "predicted", "right", "loss", "confident", "correct", "confidence")
        )
        rows = (
            torch.cat([getattr(self, name), getattr(other, name)], dim=1)
            for name in ("margins", "positive", "real")
        )
        return Counts(*sums, *rows)


def count(logits: Float[Tensor, "K B D"], labels: Int64[Tensor, "K B"], mask: Bool[Tensor, "K B"]) -> Counts:
    """The counts of one batch; samples outside `mask` are not there."""
    classes = logits.shape[2]
    taken = logits.argmax(2)
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    confidence = logits.softmax(2).amax(2).double()
    # A model that has come to NaN is confident of nothing: its sum says so, and its bin has to be one.
    bins = (confidence.nan_to_num(0.0) * CALIBRATION_BINS).ceil().long().sub(1).clamp(min=0)
    hit = mask & (taken == labels)
    two = slice(None) if classes == 2 else slice(0)
    margins = (logits[..., -1] - logits[..., 0])[:, two].double()
    return Counts(
        _by(labels, mask, classes),
        _by(taken, mask, classes),
        _by(labels, hit, classes),
        (losses.view_as(mask) * mask).sum(1),
        _by(bins, mask, CALIBRATION_BINS),
        _by(bins, hit, CALIBRATION_BINS),
        torch.zeros(len(mask), CALIBRATION_BINS, dtype=torch.float64).scatter_add(
            1, bins, torch.where(mask, confidence, 0.0)
        ),
        margins,
        (labels == 1)[:, two],
        mask[:, two],
    )


def scores(counts: Counts) -> dict[str, Float[Tensor, " K"]]:
    """Every metric of every client by name: ``accuracy``, ``loss``, and those below; NaN where it is not defined.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]])
        >>> found = scores(count(logits, torch.tensor([[0, 1, 1]]), torch.ones(1, 3, dtype=torch.bool)))
        >>> {name: round(value.item(), 3) for name, value in found.items() if name != "loss"}
        {'accuracy': 0.667, 'balanced_accuracy': 0.75, 'macro_f1': 0.667, 'calibration_error': 0.299, 'auroc': 1.0}
    """
    total = counts.support.sum(1).double()
    found = {
        "accuracy": counts.right.sum(1) / total,
        "loss": counts.loss.double() / total,
        "balanced_accuracy": balanced_accuracy(counts),
        "macro_f1": macro_f1(counts),
        "calibration_error": calibration_error(counts),
    }
    return found | ({"auroc": auroc(counts)} if counts.support.shape[1] == 2 else {})


def balanced_accuracy(counts: Counts) -> Float[Tensor, " K"]:
    """The mean over the classes that occur of the share of their samples that are taken for them.

    Source:
        K. H. Brodersen, C. S. Ong, K. E. Stephan, J. M. Buhmann, *The Balanced Accuracy and Its Posterior Distribution*,
        ICPR 2010, for two classes; here the mean recall of any number, as ``sklearn.metrics.balanced_accuracy_score``.
    """
    return (counts.right.double() / counts.support).nanmean(1)


def macro_f1(counts: Counts) -> Float[Tensor, " K"]:
    """The mean over the classes that occur or are predicted of ``2 TP / (2 TP + FP + FN)``.

    Source:
        M. Sokolova, G. Lapalme, *A Systematic Analysis of Performance Measures for Classification Tasks*, Information
        Processing and Management 45, 2009, for precision and recall by class.

    Differs:
        F1 is averaged over classes, as by ``sklearn.metrics.f1_score(average="macro")``, not made from averaged
        precision and recall.
    """
    return (2 * counts.right.double() / (counts.support + counts.predicted)).nanmean(1)


def calibration_error(counts: Counts) -> Float[Tensor, " K"]:
    """The expected calibration error: how far confidence is from accuracy, in the mean over samples.

    ``ECE = sum_m |B_m| / n * |acc(B_m) - conf(B_m)|`` over `CALIBRATION_BINS` bins of equal width, where acc is the
    share of right answers in a bin and conf its mean confidence, the probability of the class that a sample is taken for.

    Source:
        C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017, equation 3.
    """
    return (counts.correct - counts.confidence).abs().sum(1) / counts.support.sum(1)


def auroc(counts: Counts) -> Float[Tensor, " K"]:
    """The area under the receiver operating curve of a task of two classes.

    It is the share of pairs of a sample of class 1 and one of class 0 in which the former has the larger margin; equal
    margins count half. NaN where one class is missing.

    Source:
        J. A. Hanley, B. J. McNeil, *The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC)
        Curve*, Radiology 143, 1982.
    """
    positive, negative = counts.positive & counts.real, ~counts.positive & counts.real
    # What is not negative is sorted behind all that is, and below nothing.
    ladder = torch.where(negative, counts.margins, torch.inf).sort(1).values
    below, up_to = (torch.searchsorted(ladder, counts.margins, side=side) for side in ("left", "right"))
    won = ((below + up_to).double() / 2 * positive).sum(1)
    return won / (positive.sum(1) * negative.sum(1))


def _by(numbers: Int64[Tensor, "K B"], mask: Bool[Tensor, "K B"], size: int) -> Int64[Tensor, "K M"]:
    """How often each client has each number below `size` in `mask`."""
    clients = len(numbers)
    places = numbers + size * torch.arange(clients)[:, None]
    return places[mask].bincount(minlength=clients * size).view(clients, size)

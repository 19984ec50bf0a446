"""Ragged clients as rectangular batches: shuffled, padded, masked, augmented, on the client axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from fedadapt.data.augment import Augment, Draws
from fedadapt.data.dataset import Split
from fedadapt.seeds import Seeds

PADDING = -1


@dataclass(frozen=True)
class Batch:
    """One local step of K clients.

    Args:
        images: client-major, K*B of them.
        labels: 0 where there is no sample.
        mask: which samples are real. A client that is out of steps has none.
        noise: for each client, what everything else that is drawn in this step follows from.
        places: of the images in their split; 0 where there is no sample.
    """

    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, "K B"]
    mask: Bool[Tensor, "K B"]
    noise: tuple[int, ...] = ()
    places: Int64[Tensor, " N"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


def schedule(
    num_examples: int, batch_size: int, epochs: int, generator: torch.Generator
) -> Int64[Tensor, "T B"]:
    """Which of a client's samples each local step uses; short last batches are filled with `PADDING`.

    Every epoch is a fresh permutation; T is ``epochs * ceil(num_examples / batch_size)``.
    """
    steps = -(-num_examples // batch_size)
    table = torch.full((epochs, steps * batch_size), PADDING)
    for epoch in range(epochs):
        table[epoch, :num_examples] = torch.randperm(num_examples, generator=generator)
    return table.view(epochs * steps, batch_size)


def cohort_batches(
    split: Split,
    indices: Sequence[Int64[Tensor, " _"]],
    clients: Sequence[int],
    *,
    round: int,
    seeds: Seeds,
    batch_size: int,
    epochs: int,
    augment: Augment,
    efforts: Sequence[float] = (),
    purpose: str = "batches",
) -> Iterator[Batch]:
    """The local steps of a cohort, one batch at a time.

    Each client's order and augmentation come from its own generator for this round, so they do not depend on
    which other clients are in the cohort.

    Args:
        split: where the images are.
        indices: the samples of each client, as places in `split`.
        clients: their numbers.
        round: counted from 1.
        seeds: of the run.
        batch_size: B, for each client.
        epochs: passes over a client's samples.
        augment: applied to every image.
        efforts: the share of its steps that each client takes, rounded up; none for all of them.
        purpose: of the random draws; each stretch of a round's local training has its own.
    """
    tables, tops, lefts, mirrors = [], [], [], []
    for own, client, effort in zip(indices, clients, efforts or [1.0] * len(clients), strict=True):
        generator = seeds.torch(purpose, round=round, client=client)
        places = schedule(len(own), batch_size, epochs, generator)
        draws = augment.draw(places.numel(), generator)
        # Drawn for all steps and then cut off: the steps taken are the first ones of the whole work.
        taken = math.ceil(effort * len(places))
        table = torch.where(places == PADDING, PADDING, own[places.clamp(min=0)]) if len(own) else places
        tables.append(table[:taken])
        tops.append(draws.top.view_as(places)[:taken])
        lefts.append(draws.left.view_as(places)[:taken])
        mirrors.append(draws.mirror.view_as(places)[:taken])
    rows = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True, padding_value=PADDING)
    top, left, mirror = (torch.nn.utils.rnn.pad_sequence(d, batch_first=True) for d in (tops, lefts, mirrors))
    for step in range(rows.shape[1]):
        width = int((rows[:, step] != PADDING).sum(1).max())
        here = rows[:, step, :width]
        mask = here != PADDING
        flat = here.clamp(min=0).reshape(-1)
        drawn = Draws(*(d[:, step, :width].reshape(-1) for d in (top, left, mirror)))
        yield Batch(
            augment.apply(split.images[flat], drawn),
            split.labels[flat].view_as(here) * mask,
            mask,
            tuple(seeds.derive(f"{purpose}, step {step}", round=round, client=client) for client in clients),
            flat,
        )

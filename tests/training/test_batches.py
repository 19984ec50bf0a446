"""Every epoch uses each sample once, and what a client draws does not depend on its cohort."""

from __future__ import annotations

import torch
from contracts.cases import SIZES, client_indices, tiny_split
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.data.augment import Augment
from fedadapt.data.batches import PADDING, cohort_batches, schedule
from fedadapt.seeds import Seeds


@given(count=st.integers(1, 40), batch=st.integers(1, 12), epochs=st.integers(1, 4), seed=st.integers(0, 9))
def test_each_epoch_uses_each_sample_once(count, batch, epochs, seed):
    """The steps of an epoch hold a permutation, padded at the end of its last batch only."""
    table = schedule(count, batch, epochs, torch.Generator().manual_seed(seed))
    steps = -(-count // batch)
    assert table.shape == (epochs * steps, batch)
    for epoch in table.split(steps):
        flat = epoch.flatten()
        assert sorted(flat[:count].tolist()) == list(range(count))
        assert (flat[count:] == PADDING).all()


def batches_of(clients, *, round=1, epochs=2, seed=0, efforts=()):
    """Each client's real images and labels, step by step, as the cohort of `clients` sees them."""
    indices, split = client_indices(), tiny_split()
    seen = {client: [] for client in clients}
    for batch in cohort_batches(
        split, [indices[c] for c in clients], clients,
        round=round, seeds=Seeds(seed), batch_size=4, epochs=epochs, augment=Augment(pad=2, flip=True),
        efforts=efforts,
    ):  # fmt: skip
        assert batch.images.dtype == torch.uint8
        assert not (batch.labels * ~batch.mask).any()
        images = batch.images.unflatten(0, batch.mask.shape)
        for place, client in enumerate(clients):
            if batch.mask[place].any():
                real = batch.mask[place]
                seen[client].append((images[place, real], batch.labels[place, real]))
    return seen


def same(one, other):
    """Whether two clients saw the same."""
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


@settings(max_examples=30)
@given(clients=st.lists(st.integers(0, len(SIZES) - 1), min_size=1, max_size=6, unique=True))
def test_draws_do_not_depend_on_the_cohort(clients):
    """Order, crops and flips of a client are those it has alone."""
    together = batches_of(clients)
    for client in clients:
        assert same(together[client], batches_of([client])[client])
        assert len(together[client]) == 2 * -(-SIZES[client] // 4)
        labels = torch.cat([labels for _, labels in together[client]])
        own = tiny_split().labels[client_indices()[client]]
        assert torch.equal(labels.sort().values, own.repeat(2).sort().values)


def test_rounds_and_seeds_draw_anew():
    """Another round or seed gives another order."""
    first = batches_of([4])[4]
    assert not same(first, batches_of([4], round=2)[4])
    assert not same(first, batches_of([4], seed=1)[4])


def test_without_augmentation_images_are_those_of_the_split():
    """Each real image is the one at its index."""
    split, own = tiny_split(), client_indices()[2]
    images = torch.cat(
        [
            batch.images
            for batch in cohort_batches(
                split, [own], [2],
                round=1, seeds=Seeds(0), batch_size=4, epochs=1, augment=Augment(pad=0, flip=False),
            )
        ]
    )  # fmt: skip
    assert sorted(i.flatten().tolist() for i in images) == sorted(
        i.flatten().tolist() for i in split.images[own]
    )


def test_part_of_the_work_is_its_first_steps():
    """At a share of 0.3 a client sees the first three tenths of its steps, rounded up, as if it did all of them."""
    clients = list(range(len(SIZES)))
    whole = batches_of(clients)
    part = batches_of(clients, efforts=[0.3 if client % 2 else 1.0 for client in clients])
    for client in clients:
        steps = len(whole[client])
        taken = -(-3 * steps // 10) if client % 2 else steps
        assert same(part[client], whole[client][:taken])

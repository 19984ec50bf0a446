"""Dropout before branches follows from the seed, the round and the client, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contracts.adapter_table import BRANCHES
from contracts.cases import federate, random_images, tiny_model, tiny_party, zoo_backbone

from fedadapt.adapters import attach
from fedadapt.errors import ConfigError
from fedadapt.params import expand
from fedadapt.registry import create
from fedadapt.seeds import Seeds

NOISE = (11, 12, 13)


def moved(model):
    """The start with all adapters at 1, so that what goes into them shows."""
    return {n: torch.ones_like(t) if ".adapter." in n else t for n, t in model.start.items()}


@BRANCHES
def test_a_client_drops_what_it_drops_alone(case):
    """Its logits do not depend on who else is in the batch, nor on how far its own samples are padded."""
    options = case.with_sites(kernel_sizes=(3, 5, 7), dropout=0.4)
    if case.name == "bias":
        with pytest.raises(ConfigError, match="a bias has no input to drop"):
            create("adapter", "bias", options)
        return
    adapter, norms = create("adapter", case.name, options), create("norm policy", "frozen")
    model = attach(zoo_backbone(), adapter, norms, torch.Generator().manual_seed(0))
    params, images = moved(model), random_images(9)
    together = model(expand(params, 3), images, training=True, noise=NOISE)
    used = model(expand(params, 3), images)
    assert not torch.allclose(together, used, rtol=1e-3)
    for client, noise in enumerate(NOISE):
        for padded in (3, 2):
            own = images[3 * client : 3 * client + padded]
            alone = model(expand(params, 1), own, training=True, noise=(noise,))
            expected = together[3 * client : 3 * client + padded]
            torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-3)


def test_the_share_that_is_dropped_and_the_mean_that_is_kept():
    """Of 64 values in 10,000 rows a quarter is 0, by hand within 5 standard deviations, the rest is 4/3."""
    model = tiny_model("parallel", sites={"dropout": 0.25})
    (drop,) = model.module.get_submodule("conv1.adapter")._forward_pre_hooks.values()
    drop.pass_.noise = (5,)
    (kept,) = drop(torch.nn.Identity(), (torch.ones(10_000, 64),))
    share = float((kept == 0).float().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 640_000) ** 0.5
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]


def test_sites_and_steps_drop_other_values():
    """Two sites of one shape, and two steps, draw anew."""
    model = tiny_model("parallel", sites={"dropout": 0.5})
    first, second = (
        next(iter(model.module.get_submodule(f"layer1.0.{name}.adapter")._forward_pre_hooks.values()))
        for name in ("conv1", "conv2")
    )
    masks = []
    for noise in ((1,), (2,)):
        first.pass_.noise = noise
        masks += [drop(torch.nn.Identity(), (torch.ones(2, 9),))[0] for drop in (first, second)]
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_training_with_dropout_is_the_same_in_any_chunk_and_another_with_another_seed():
    """Rounds of ragged clients come to one state, whoever is trained together."""
    states = []
    for chunk, root in ((16, 3), (3, 3), (16, 4)):
        party = tiny_party(tiny_model("parallel", sites={"dropout": 0.5}), sizes=(3, 8, 1, 5))
        party = replace(party, seeds=Seeds(root))
        states.append(federate(party, [[0, 1, 2, 3]] * 2, chunk=chunk)[-1]["model"])
    plain = tiny_party(tiny_model("parallel"), sizes=(3, 8, 1, 5))
    states.append(federate(plain, [[0, 1, 2, 3]] * 2)[-1]["model"])
    one, chunked, reseeded, without = (state["layer3.0.conv1.adapter.weight"] for state in states)
    torch.testing.assert_close(one, chunked, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(one, reseeded, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(one, without, rtol=1e-3, atol=1e-5)

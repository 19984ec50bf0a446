"""Adapters on one backbone are switched, mixed, and used together in one batch."""

from __future__ import annotations

import pytest
import torch
from contracts.adapter_table import CASES
from contracts.cases import jiggle, random_images, tiny_backbone, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.adapters import AdapterBank, attach, save_adapter
from fedadapt.adapters.bank import SLACK, tile
from fedadapt.errors import AttachError
from fedadapt.params import expand
from fedadapt.registry import create

PEOPLE = ("ann", "bob", "cleo", "dan")


def bank_of(adapter="parallel", norms="frozen", people=PEOPLE, **options):
    """Adapters of several people, all different."""
    bank = AdapterBank(tiny_model(adapter, norms, **options))
    for seed, name in enumerate(people):
        bank.add(name, jiggle(bank.model.start, seed, scale=0.3))
    return bank


@CASES
@pytest.mark.parametrize(
    "names", ["ann bob cleo dan", "bob bob bob ann", "dan ann dan bob dan dan dan cleo", "cleo"]
)
def test_every_image_is_seen_by_its_own_adapter(case, names):
    """A mixed batch gives each image what it gets alone, whichever adapters are asked for and how often."""
    bank, names = bank_of(case.name, **case.options), names.split()
    images = random_images(len(names))
    together = bank.predict(images, names)
    for place, name in enumerate(names):
        alone = bank.model(expand(bank[name], 1), images[place : place + 1])
        torch.testing.assert_close(together[place : place + 1], alone, rtol=1e-4, atol=1e-4)


def test_one_name_is_for_all():
    """Switching is naming another one."""
    bank, images = bank_of(), random_images(3)
    ann, bob = (bank.predict(images, name) for name in ("ann", "bob"))
    torch.testing.assert_close(bank.predict(images, ["ann"] * 3), ann)
    assert not torch.allclose(ann, bob, rtol=1e-3)


def test_a_bank_changes_as_adapters_come_and_go():
    """After each change a mixed batch is that of the adapters that are there, and the tensors are theirs bit for bit."""
    bank, images = bank_of(), random_images(2)
    before, tensors = bank.predict(images, ["bob", "dan"]), jiggle(bank.model.start, 1, scale=0.3)
    bank.remove("ann")
    bank.add("eve", jiggle(bank.model.start, 9))
    assert bank.names == ["bob", "cleo", "dan", "eve"]
    torch.testing.assert_close(bank.predict(images, ["bob", "dan"]), before)
    assert all(torch.equal(bank["bob"][name], tensor) for name, tensor in tensors.items())


@settings(max_examples=50)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_tiles_hold_every_row_once_and_are_not_mostly_padding(counts):
    """Whatever the counts: rows of an adapter are in its tiles, and padding repeats a row of the same tile."""
    rows = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).split(counts)
    wanted = {number: own.tolist() for number, own in enumerate(rows)}
    slots, tiles = tile(wanted)
    assert tiles.numel() <= SLACK * sum(counts)
    for number, own in wanted.items():
        mine = torch.cat([row for slot, row in zip(slots, tiles, strict=True) if slot == number]).tolist()
        assert set(mine) == set(own)


@CASES
@pytest.mark.parametrize("weights", [{"ann": 0.25, "bob": 0.75}, {"ann": 2.0, "bob": -1.0, "cleo": 0.5}])
def test_maps_mix_with_their_tensors_where_that_is_promised(case, weights):
    """At every site the mix adds what its parts add, weighted; what is not linear is refused with the reason."""
    bank = bank_of(case.name, **case.options)
    if not case.linear:
        with pytest.raises(AttachError, match=f"adapter '{case.name}' is not linear in its tensors"):
            bank.mix(weights)
        return
    mixed, start = bank.mix(weights), bank.model.start
    for name, tensor in mixed.items():
        expected = start[name] + sum(w * (bank[a][name] - start[name]) for a, w in weights.items())
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)
    for site in bank.model.sites:
        layer = bank.model.module.get_submodule(site.name)
        x = torch.randn(2, site.in_channels, 6, 6, generator=torch.Generator().manual_seed(1))

        def output(params, layer=layer, prefix=f"{site.name}.", x=x):
            own = {n.removeprefix(prefix): t[None] for n, t in params.items() if n.startswith(prefix)}
            return torch.func.functional_call(layer, own, (x,)).detach()

        base = output(start)
        expected = base + sum(w * (output(bank[a]) - base) for a, w in weights.items())
        torch.testing.assert_close(output(mixed), expected, rtol=1e-3, atol=1e-3)


def test_statistics_are_averaged_or_left():
    """Means of running statistics are statistics, differences are not; a low-rank head mixes as little as an adapter."""
    bank = bank_of(norms="averaged")
    mean = bank.mix({"ann": 0.5, "bob": 0.5})["bn1.running_var"]
    torch.testing.assert_close(mean, (bank["ann"]["bn1.running_var"] + bank["bob"]["bn1.running_var"]) / 2)
    for weights in ({"ann": 1.0, "bob": 1.0}, {"ann": 2.0, "bob": -1.0}):
        with pytest.raises(AttachError, match="'averaged' keeps statistics"):
            bank.mix(weights)
    head = create("head policy", "low_rank", {"rank": 1})
    adapter, norms = create("adapter", "parallel"), create("norm policy", "frozen")
    model = attach(tiny_backbone(), adapter, norms, torch.Generator().manual_seed(0), head)
    with pytest.raises(AttachError, match="head 'low_rank' is not linear"):
        AdapterBank(model).mix({})


def test_what_does_not_fit_is_refused(tmp_path):
    """Names that are taken or unknown, tensors of another model, and more images than names."""
    bank = bank_of()
    save_adapter(bank.model, bank["bob"], tmp_path / "bob.safetensors")
    bank.load("bobby", tmp_path / "bob.safetensors")
    assert torch.equal(bank["bobby"]["fc.weight"], bank["bob"]["fc.weight"])
    for act, said in (
        (lambda: bank.add("ann", bank["bob"]), "'ann' is there already"),
        (lambda: bank["anne"], "no adapter 'anne' among 5; near: ann"),
        (lambda: bank.remove("zoe"), "no adapter 'zoe'"),
        (lambda: bank.predict(random_images(1), ["zoe"]), "no adapter 'zoe'"),
        (lambda: bank.predict(random_images(2), ["ann"]), "2 images need as many adapter names, got 1"),
        (
            lambda: bank.add("x", tiny_model("diagonal").start),
            "'x' does not fit adapter .* tensor 'conv1.adapter.weight' is",
        ),
        (lambda: bank.mix({"zoe": 1.0}), "no adapter 'zoe'"),
        (lambda: bank.add("x", {n: t / 0 for n, t in bank["bob"].items()}), "'x' holds infinite or NaN"),
        (lambda: bank.predict(random_images(1)[:0], []), "no images"),
    ):
        with pytest.raises(AttachError, match=said):
            act()

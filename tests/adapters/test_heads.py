"""Heads are trained, kept, frozen or low-rank, and what is said of them is what travels."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import first_state, jiggle, random_images, tiny_backbone, tiny_party

from fedadapt.adapters import attach, load_adapter, merge, save_adapter
from fedadapt.errors import AttachError
from fedadapt.federation.messages import Request
from fedadapt.federation.plan import Travel, make_plan
from fedadapt.federation.round import play
from fedadapt.federation.serve import serve
from fedadapt.params import Group, expand, pick, stack
from fedadapt.registry import create


def model_of(head, adapter="parallel", seed=0, **options):
    """The tiny network, 8 channels before 5 classes, under a head policy."""
    return attach(
        tiny_backbone(),
        create("adapter", adapter),
        create("norm policy", "frozen"),
        torch.Generator().manual_seed(seed),
        create("head policy", head, options),
    )


@pytest.mark.parametrize(
    ("head", "options", "values", "travel"),
    [
        ("trained", {}, 45, Travel.SHARED),
        ("kept", {}, 45, Travel.KEPT),
        ("low_rank", {"rank": 2}, 31, Travel.SHARED),
    ],
)
def test_what_is_trained_and_travels(head, options, values, travel):
    """The whole head has 8 * 5 + 5 values, at rank 2 it is 2 * (8 + 5) + 5; a kept one does not travel."""
    model = model_of(head, **options)
    rows = [row for row in make_plan(model, model.kept, {}).rows if row.group is Group.HEAD]
    assert sum(row.num_values for row in rows) == values
    assert {row.travel for row in rows} == {travel}


def test_a_frozen_head_is_not_trained():
    """Nothing of it is among the tensors that change, and another one is another model."""
    model = model_of("frozen")
    assert Group.HEAD not in {model.groups[name] for name in model.start}
    assert model.digest != model.backbone.digest
    with pytest.raises(AttachError, match="adapter 'head' with head 'frozen' trains nothing"):
        model_of("frozen", "head")


@pytest.mark.parametrize(("head", "options"), [("kept", {}), ("frozen", {}), ("low_rank", {"rank": 2})])
def test_a_head_starts_unchanged_and_merges(head, options, tmp_path):
    """Whatever the policy: clients get what each gets alone, the merged network is the same, and files come back."""
    model = model_of(head, **options)
    images = random_images(4)
    expected = model.backbone.module(images)
    torch.testing.assert_close(model(expand(model.start, 2), images), expected, rtol=1e-5, atol=1e-5)
    own = [jiggle(model.start, seed) for seed in range(2)]
    together = model(stack(own), images)
    for client, params in enumerate(own):
        alone = model(expand(params, 1), images[2 * client : 2 * client + 2])
        torch.testing.assert_close(together[2 * client : 2 * client + 2], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merge(model, own[0])(images[:2]), together[:2], rtol=1e-4, atol=1e-4)
    save_adapter(model, own[0], tmp_path / "a.safetensors")
    loaded = load_adapter(model, tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own[0].items())


def test_a_low_rank_head_by_hand():
    """U = 1 in one place over D = 1 adds one entry to the weight."""
    model = model_of("low_rank", rank=1)
    params = {
        name: torch.zeros_like(tensor) for name, tensor in model.start.items() if name.startswith("fc.")
    }
    params["fc.down"][0, 3] = params["fc.up"][2, 0] = 1.0
    added = merge(model, model.start | params).fc.weight - model.backbone.module.fc.weight
    assert added.nonzero().tolist() == [[2, 3]]
    assert float(added[2, 3]) == pytest.approx(1.0)


def test_a_rank_that_saves_nothing_is_refused():
    """At rank 4 two thin matrices of an 8 by 5 head have 52 values."""
    with pytest.raises(AttachError, match=r"head.rank=4 needs 52 values, the whole head .* has 40"):
        model_of("low_rank", rank=4)


def test_a_kept_head_stays_with_its_client():
    """After a round the server has no head, and each client remembers its own."""
    model = model_of("kept")
    party = tiny_party(model)
    flow = play(party.algorithm, party.wire, first_state(party), 1, [0, 3])
    requests = next(flow)
    assert all(isinstance(request, Request) for request in requests)
    with pytest.raises(StopIteration) as stop:
        flow.send(serve(requests, party))
    assert not any(name.startswith("fc.") for name in stop.value.value.state["model"])
    heads = [party.memory[client]["kept"]["fc.weight"] for client in (0, 3)]
    assert not torch.equal(heads[0], heads[1])
    assert set(pick(stack([party.memory[0]["kept"]]), 0)) == {"fc.weight", "fc.bias"}

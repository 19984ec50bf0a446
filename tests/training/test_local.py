"""The local loop: what it counts, what algorithms may change, and what it refuses to return."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import MEAN, SIZES, STD, client_indices, tiny_backbone, tiny_model, tiny_split

from fedadapt.adapters import attach
from fedadapt.data.augment import Augment
from fedadapt.data.batches import cohort_batches
from fedadapt.errors import ClientError, ConfigError
from fedadapt.params import expand, scale
from fedadapt.registry import create
from fedadapt.seeds import Seeds
from fedadapt.training.config import TrainConfig
from fedadapt.training.evaluate import evaluate
from fedadapt.training.local import Hooks, train

CLIENTS = [2, 0, 5]


def run(model, start=None, hooks=None, **settings):
    """Three clients trained together."""
    config = TrainConfig(**{"device": "cpu", "batch_size": 4} | settings)
    batches = cohort_batches(
        tiny_split(), [client_indices()[c] for c in CLIENTS], CLIENTS,
        round=1, seeds=Seeds(0), batch_size=4, epochs=config.epochs, augment=Augment(pad=0, flip=False),
    )  # fmt: skip
    begin = expand(model.start, 3) if start is None else start
    return train(model, begin, batches, config, lr=config.lr, mean=MEAN, std=STD, hooks=hooks or Hooks())


def scaled(factor):
    """Gradients times a number."""
    return Hooks(gradient=lambda gradient: lambda point: scale(gradient(point), factor))


def test_it_counts_steps_and_leaves_the_start_alone():
    """Each client's steps are its own, and the tensors given are not changed."""
    model = tiny_model()
    start = expand(model.start, 3)
    before = {name: tensor.clone() for name, tensor in start.items()}
    trained = run(model, start, epochs=3)
    assert trained.num_steps.tolist() == [3 * -(-SIZES[c] // 4) for c in CLIENTS]
    assert all(torch.equal(before[name], tensor) for name, tensor in start.items())
    assert not any(tensor.requires_grad for tensor in trained.params.values())


def test_training_learns():
    """Some epochs on a few samples bring the loss down for each client."""
    model = tiny_model()
    early, late = run(model, lr=0.1), run(model, lr=0.1, epochs=15)
    assert (late.loss < early.loss).all()


def test_algorithms_change_gradients_before_clipping():
    """Doubled gradients double a plain step, and clipping sees them doubled."""
    model = tiny_model("head")
    plain = run(model, momentum=0.0, lr=1e-3)
    double = run(model, hooks=scaled(2.0), momentum=0.0, lr=1e-3)
    start = model.start["fc.bias"]
    ratio = (double.params["fc.bias"][1] - start) / (plain.params["fc.bias"][1] - start)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0), rtol=1e-2, atol=0)
    clipped = run(model, hooks=scaled(1e6), momentum=0.0, lr=1.0, clip_norm=0.25)
    moved = torch.cat([(clipped.params[n][1] - model.start[n]).flatten() for n in model.start])
    assert float(moved.norm()) == pytest.approx(0.25, rel=1e-3)


def test_the_loss_is_the_mean_over_real_samples():
    """At a vanishing rate it is the cross-entropy of the start on the client's own samples."""
    model = tiny_model()
    trained = run(model, lr=1e-12)
    for place, client in enumerate(CLIENTS):
        own = tiny_split().take(client_indices()[client])
        expected = evaluate(model, model.start, own, MEAN, STD)["loss"]
        assert float(trained.loss[place]) == pytest.approx(expected, rel=1e-4)


def test_divergence_is_an_error_with_advice():
    """An infinite loss is not returned; the message has the rate and what to change."""
    model = tiny_model()
    start = expand(model.start, 3)
    start["fc.bias"][1] = float("nan")
    with pytest.raises(ClientError, match=r"not finite at train.lr=0.05; lower it or set train.clip_norm"):
        run(model, start)


def test_a_device_that_is_not_there_is_refused():
    """The message says which devices there are to ask for."""
    with pytest.raises(ConfigError, match="use auto, cpu, cuda"):
        TrainConfig(device="toaster").resolve_device()
    assert TrainConfig(device="cpu").resolve_device() == torch.device("cpu")


def test_what_the_network_does_not_use_stays_as_it_is():
    """Full fine-tuning trains every parameter, and one that no output depends on has a gradient of zero."""
    backbone = tiny_backbone()
    backbone.module.unused = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    adapter, policy = create("adapter", "full"), create("norm policy", "frozen")
    model = attach(backbone, adapter, policy, torch.Generator().manual_seed(0))
    split, indices = tiny_split(), client_indices()
    batches = cohort_batches(
        split, [indices[2]], [2],
        round=1, seeds=Seeds(0), batch_size=4, epochs=1, augment=Augment(pad=0, flip=False),
    )  # fmt: skip
    config = TrainConfig(device="cpu", batch_size=4)
    trained = train(model, expand(model.start, 1), batches, config, lr=0.1, mean=MEAN, std=STD, hooks=Hooks())
    assert torch.equal(trained.params["unused"], torch.ones(1, 3))
    assert not torch.equal(trained.params["fc.bias"][0], model.start["fc.bias"])


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_rest_where_all_but_the_head_does(frozen):
    """What is frozen stays as it came, running statistics included; otherwise they move with the batches."""
    model = tiny_model("parallel", "averaged")
    still = frozenset(name for name in model.start if not name.startswith("fc.")) if frozen else frozenset()
    start = expand(model.start, 3)
    trained = run(model, start, Hooks(frozen=still))
    moved = {name for name, tensor in trained.params.items() if not torch.equal(tensor, start[name])}
    assert {"fc.weight", "fc.bias"} <= moved
    assert bool(moved & set(model.moving)) != frozen
    assert not moved & still

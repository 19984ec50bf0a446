"""The stacked optimisers take the steps that torch's take, for each client by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.params import as_rows, from_rows
from fedadapt.training.config import TrainConfig
from fedadapt.training.optimizers import clip, make_optimizer

SHAPES = {"w": (3, 4), "b": (5,), "s": ()}


def draw(generator, clients):
    """Random stacked tensors."""
    return {name: torch.randn(clients, *shape, generator=generator) for name, shape in SHAPES.items()}


def theirs(config, start, gradients):
    """Where torch's own optimiser ends."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            weights.values(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(
            weights.values(), config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
    for gradient in gradients:
        for name, weight in weights.items():
            weight.grad = gradient[name].clone()
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


@settings(max_examples=25)
@given(
    optimizer=st.sampled_from(["sgd", "adamw"]),
    lr=st.sampled_from([0.3, 0.01]),
    momentum=st.sampled_from([0.0, 0.9]),
    betas=st.sampled_from([(0.9, 0.999), (0.5, 0.9)]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    steps=st.integers(1, 6),
)
def test_steps_are_those_of_torch(optimizer, lr, momentum, betas, weight_decay, steps):
    """After some steps with the same gradients, weights agree with torch.optim."""
    config = TrainConfig(
        optimizer=optimizer, lr=lr, momentum=momentum, betas=betas, weight_decay=weight_decay
    )
    generator = torch.Generator().manual_seed(0)
    params = draw(generator, 1)
    start = {name: tensor.clone() for name, tensor in params.items()}
    gradients = [draw(generator, 1) for _ in range(steps)]
    rows = as_rows(params)
    step = make_optimizer(rows, config)
    for gradient in gradients:
        step(rows, gradient, torch.tensor([lr]))
    ends = from_rows(rows, params)
    for name, expected in theirs(config, start, gradients).items():
        torch.testing.assert_close(ends[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_client_with_rate_zero_rests(optimizer):
    """Neither momentum nor weight decay moves it, and the others go on."""
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    rows = as_rows(draw(generator, 2))
    step = make_optimizer(rows, config)
    step(rows, draw(generator, 2), torch.tensor([0.1, 0.1]))
    before = rows.clone()
    step(rows, draw(generator, 2), torch.tensor([0.0, 0.1]))
    assert torch.equal(rows[0], before[0])
    assert bool((rows[1] != before[1]).all())


@given(largest=st.floats(0.01, 100), seed=st.integers(0, 20))
def test_clipping_is_that_of_torch_for_each_client(largest, seed):
    """Each client's joint norm is cut by itself, as torch's clip_grad_norm_ would."""
    gradients = draw(torch.Generator().manual_seed(seed), 3)
    gradients["w"][1] *= 50
    clipped = clip(gradients, largest)
    for client in range(3):
        leaves = [torch.zeros(tensor.shape[1:], requires_grad=True) for tensor in gradients.values()]
        for leaf, tensor in zip(leaves, gradients.values(), strict=True):
            leaf.grad = tensor[client].clone()
        torch.nn.utils.clip_grad_norm_(leaves, largest)
        for leaf, tensor in zip(leaves, clipped.values(), strict=True):
            torch.testing.assert_close(tensor[client], leaf.grad, rtol=1e-4, atol=1e-6)


def test_clipping_zeros_gives_zeros():
    """A client without gradient has no NaN."""
    assert torch.equal(clip({"w": torch.zeros(2, 3)}, 1.0)["w"], torch.zeros(2, 3))

"""How long the way of a client is, in gradients."""

from __future__ import annotations

import pytest
import torch

from fedadapt.algorithms.algorithm import Work
from fedadapt.algorithms.path import path_length
from fedadapt.training.config import TrainConfig


def work(momentum, steps):
    """What clients of so many steps did; their tensors do not matter."""
    config = TrainConfig(momentum=momentum)
    return Work({}, {}, torch.tensor(steps), config.lr, config, {}, {})


def test_two_steps_with_momentum_by_hand():
    """The first gradient goes 1 + (0.9 + 0) further in the second step, which adds its own: 1.9 + 1 = 2.9."""
    assert path_length(work(0.9, [1, 2])).tolist() == pytest.approx([1.0, 2.9])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_it_is_the_way_of_a_constant_gradient_of_one(momentum):
    """As torch's own SGD goes it: start minus end over the rate."""
    for steps in (1, 3, 10):
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.5, momentum=momentum)
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        assert path_length(work(momentum, [steps])).item() == pytest.approx(-weight.item() / 0.5)

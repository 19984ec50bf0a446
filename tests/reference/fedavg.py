"""Federated averaging written out value by value, slowly."""

from __future__ import annotations

import torch


def step(state, updates):
    """Adds the mean of the clients' differences, weighted by their samples, in Python's own floats."""
    total = sum(update.num_examples for update in updates)
    model = {}
    for name, tensor in state["model"].items():
        values = tensor.flatten().tolist()
        for place in range(len(values)):
            for update in updates:
                share = update.num_examples / total
                values[place] += share * float(update.streams["delta"][name].flatten()[place])
        model[name] = torch.tensor(values).view(tensor.shape)
    return {**state, "model": model}

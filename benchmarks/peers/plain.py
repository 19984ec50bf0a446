"""A plain PyTorch loop: load the state, train, average."""

from __future__ import annotations

import torch
from work import network, obey, parse, train_client, trained

work, arguments = parse()
net, images, labels = network(work), work.images(), work.labels()
state = {name: tensor.detach().clone() for name, tensor in trained(net).items()}
generator = torch.Generator().manual_seed(0)


def play() -> None:
    """One round."""
    sums = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for client in torch.randperm(work.clients, generator=generator)[: work.cohort].tolist():
        net.load_state_dict(state, strict=False)
        own = work.indices(client)
        train_client(net, images[own], labels[own], work.batch, arguments.precision)
        for name, tensor in trained(net).items():
            sums[name] += tensor.detach()
    for name, tensor in sums.items():
        state[name] = tensor / work.cohort


obey(play)

"""A federation written out client by client and batch by batch, with plain gradient descent.

Techniques say in their own files what their `client` and their server's `step` do; what they do not say is plain
federated averaging. Nothing of the algorithms, the loop, the optimisers or the wire is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from fedadapt.data.augment import normalise
from fedadapt.data.batches import cohort_batches


@dataclass
class Client:
    """One client in one round: what it got, what it kept, and its batches."""

    party: Any
    number: int
    round: int
    download: dict
    memory: dict = field(default_factory=dict)

    @property
    def lr(self):
        """The local rate."""
        return self.party.train.rate(self.round, self.party.rounds)

    @property
    def start(self):
        """The model it got."""
        return {name: tensor.clone() for name, tensor in self.download["model"].items()}

    @property
    def labels(self):
        """The labels of its samples."""
        return self.party.split.labels[self.party.indices[self.number]].tolist()

    def batches(self, epochs=None, purpose="batches"):
        """Its batches: images, normalised, and labels."""
        party = self.party
        for batch in cohort_batches(
            party.split, [party.indices[self.number]], [self.number], round=self.round, seeds=party.seeds,
            batch_size=party.train.batch_size, epochs=epochs or party.train.epochs, augment=party.augment,
            purpose=purpose,
        ):  # fmt: skip
            real = batch.mask[0]
            images = normalise(batch.images, party.mean, party.std, torch.float32)
            yield images[real], batch.labels[0][real]

    def everything(self):
        """All its samples as they are, in one batch."""
        own = self.party.split.take(self.party.indices[self.number])
        return normalise(own.images, self.party.mean, self.party.std, torch.float32), own.labels

    def loss(self, params, batch, change=lambda logits: logits):
        """The mean cross-entropy of a batch."""
        stacked = {name: tensor[None] for name, tensor in params.items()}
        logits = self.party.model(stacked, batch[0], mask=None, training=False)
        return functional.cross_entropy(change(logits), batch[1])

    def gradient(self, params, batch, loss=None):
        """The gradient of the loss at `params`."""
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
        (loss or self.loss)(leaves, batch).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    def descend(self, direction=None):
        """Where plain descent along `direction` ends, and after how many steps."""
        params, steps = self.start, 0
        for batch in self.batches():
            along = (direction or self.gradient)(params, batch)
            params = {name: tensor - self.lr * along[name] for name, tensor in params.items()}
            steps += 1
        return params, steps

    def difference(self, params):
        """The way from what it got to `params`."""
        return {name: tensor - self.download["model"][name] for name, tensor in params.items()}


def plain_client(client):
    """Federated averaging: descend, and send the difference."""
    params, steps = client.descend()
    return {"delta": client.difference(params)}, {}, {}, steps


def federate(reference, party, cohorts):
    """The server's states and the clients' memories after rounds with these cohorts."""
    act = getattr(reference, "client", plain_client)
    model = {name: party.model.start[name].clone() for name in party.wire.plan.layout()}
    state = {"model": model, **getattr(reference, "streams", lambda model: {})(model)}
    states, memory = [state], {}
    for number, cohort in enumerate(cohorts, start=1):
        updates = []
        for client in sorted(cohort):
            download = {name: dict(params) for name, params in state.items()}
            one = Client(party, client, number, download, memory.get(client, {}))
            streams, kept, scalars, steps = act(one)
            if kept:
                memory[client] = kept
            size = len(party.indices[client])
            updates.append(
                SimpleNamespace(num_examples=size, num_steps=steps, streams=streams, scalars=scalars)
            )
        state = reference.step(state, updates, len(party.indices))
        states.append(state)
    return states, memory


def numbers(params):
    """All values of a model as one list of Python's floats."""
    return [value for tensor in params.values() for value in tensor.flatten().tolist()]


def like(values, params):
    """The inverse of `numbers`, in the names and shapes of `params`."""
    found, place = {}, 0
    for name, tensor in params.items():
        found[name] = torch.tensor(values[place : place + tensor.numel()]).view(tensor.shape)
        place += tensor.numel()
    return found


def mean(updates, weights, stream="delta"):
    """The weighted mean of what was sent, as a list of floats."""
    rows, total = [numbers(update.streams[stream]) for update in updates], sum(weights)
    return [
        sum(weight * value for weight, value in zip(weights, column, strict=True)) / total
        for column in zip(*rows, strict=True)
    ]


def by_size(updates):
    """The mean weighted by samples."""
    return mean(updates, [update.num_examples for update in updates])


def equal(updates):
    """The equal mean."""
    return mean(updates, [1.0] * len(updates))


def moved(model, by):
    """A model with a list of floats added."""
    return like([w + d for w, d in zip(numbers(model), by, strict=True)], model)

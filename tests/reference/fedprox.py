"""FedProx with mu = 0.5: descent on the loss plus a spring to the model of the round."""

from __future__ import annotations

from reference import fedavg

MU = 0.5
step = fedavg.step


def client(client):
    """The spring is written as a loss, and differentiated."""

    def loss(params, batch):
        spring = sum(((params[name] - client.download["model"][name]) ** 2).sum() for name in params)
        return client.loss(params, batch) + MU / 2 * spring

    params, steps = client.descend(lambda params, batch: client.gradient(params, batch, loss))
    return {"delta": client.difference(params)}, {}, {}, steps

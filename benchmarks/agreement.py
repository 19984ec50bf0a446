"""The learning curve of federated averaging in fedadapt and in Flower: same split, first weights and order of images.

``python benchmarks/agreement.py`` trains the shipped ResNet-26 on scikit-learn's digits at 16 pixels, ten clients with skewed
labels, once with fedadapt and once with Flower's simulation and its own ``FedAvg``, whose clients are a plain PyTorch
loop: an ordinary module, autograd and ``torch.optim.SGD``. Both are done for full fine-tuning and for parallel
adapters. From fedadapt the other side takes the pretrained weights, who holds which images, and in which order a
client sees them; its sums are in another order, so the curves part by rounding, and by nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from document import write
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peers.digits import RATES, fit, held, network, pixels, recipe, trained
from torch import Tensor
from torch.nn import functional

import fedadapt
from fedadapt.experiment.config import RunConfig
from fedadapt.runs.store import RunStore

Curve = list[dict[str, float]]


def ours(config: RunConfig) -> tuple[Curve, dict[str, Tensor]]:
    """The curve of fedadapt, and the model at its end."""
    with tempfile.TemporaryDirectory() as folder:
        path = fedadapt.run(config, Path(folder))
        with RunStore.read(path) as store:
            final = store.state()["model"]
            names = ("accuracy", "loss")
            curve = [{name: row.metrics[name] for name in names} for row in store.rounds() if row.metrics]
    return curve, dict(final)


def theirs(adapter: str, rounds: int) -> tuple[Curve, dict[str, Tensor]]:
    """The curve of Flower, and the model at its end."""
    client_app, server_app = ClientApp(), ServerApp()
    found: dict[str, Any] = {}

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        experiment = held(adapter, rounds)
        net = network(experiment)
        net.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
        client, number = (
            int(context.node_config["partition-id"]),
            int(message.content["config"]["server-round"]),
        )
        examples = fit(experiment, net, client, number)
        content = {"arrays": ArrayRecord(trained(net)), "metrics": MetricRecord({"num-examples": examples})}
        return Message(content=RecordDict(content), reply_to=message)

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        experiment = held(adapter, rounds)
        net = network(experiment)

        def measure(_round: int, arrays: ArrayRecord) -> MetricRecord:
            net.load_state_dict(arrays.to_torch_state_dict(), strict=False)
            with torch.no_grad():
                logits = net(pixels(experiment, experiment.measured_on.images))
            labels = experiment.measured_on.labels
            accuracy = float((logits.argmax(1) == labels).double().mean())
            return MetricRecord(
                {"accuracy": accuracy, "loss": float(functional.cross_entropy(logits, labels))}
            )

        result = FedAvg(fraction_evaluate=0.0, min_available_nodes=10).start(
            grid, ArrayRecord(trained(net)), num_rounds=rounds, evaluate_fn=measure
        )
        measured = result.evaluate_metrics_serverapp
        found["curve"] = [dict(measured[number]) for number in range(rounds + 1)]
        found["final"] = result.arrays.to_torch_state_dict()

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=10, backend_config=resources)
    return found["curve"], found["final"]


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor], first: dict[str, Tensor]) -> float:
    """Between the two ends, as a part of the way from the beginning."""
    if set(ours) != set(theirs):
        raise RuntimeError(f"not the same tensors: {sorted(set(ours) ^ set(theirs))[:4]}")
    apart = sum(float((t.double() - theirs[n].double().view_as(t)).square().sum()) for n, t in ours.items())
    way = sum(float((t.double() - first[n].double().view_as(t)).square().sum()) for n, t in ours.items())
    return (apart / way) ** 0.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for adapter, rate in RATES.items():
        config = recipe(adapter, arguments.rounds)
        here, our_end = ours(config)
        there, their_end = theirs(adapter, arguments.rounds)
        first = trained(network(held(adapter, arguments.rounds)))
        results.append(
            {
                "adapter": adapter,
                "lr": rate,
                "distance": distance(our_end, their_end, first),
                "fedadapt": here,
                "flower": there,
            }
        )
        for name in ("accuracy", "loss"):
            for side, curve in (("fedadapt", here), ("flower", there)):
                print(f"{adapter:9} {name:9} {side:9}", *(f"{point[name]:.4f}" for point in curve))
        print(
            f"{adapter:9} ends apart, of the way from the beginning: {results[-1]['distance']:.2g}",
            flush=True,
        )
    write(arguments.out, results, packages=("flwr", "ray"), rounds=arguments.rounds, seed=0)

"""Images a second of local training: clients together on the client axis, one by one, and in a plain loop.

``python benchmarks/cohort.py --out DIR`` trains a cohort of 50 clients with 10 images each for one epoch, in
chunks of several sizes, and beside it in a loop as one would write it with PyTorch alone: for each client load
the global state, step ``torch.optim.SGD``, read the state back. Before anything is timed, the loop's result is
compared with ours, so both are known to do the same work. Ways take turns, so that a machine that gets slower
in the course of it does so for all of them. The images are noise: speed does not depend on what they show.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from document import write
from torch import Tensor, nn
from torch.nn import functional

from fedadapt.adapters import AdaptedModel, attach
from fedadapt.backbones import Backbone
from fedadapt.data.augment import Augment
from fedadapt.data.batches import cohort_batches, schedule
from fedadapt.data.dataset import Split
from fedadapt.params import Params, expand, pick
from fedadapt.registry import create
from fedadapt.seeds import Seeds
from fedadapt.training.config import Precision, TrainConfig
from fedadapt.training.local import train

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLASSES = 10
PIXELS = 32
TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference between the two results, as a share of what training changed. In bf16 the plain loop
rounds at other places, because autocast decides by operation what is computed in bf16."""

Way = Callable[[], list[Params]]
"""Trains all clients once and returns the tensors of each."""


@dataclass(frozen=True)
class Cohort:
    """Who trains on what, and how.

    Args:
        split: all images, those of a client together.
        indices: which of them each client has.
        config: how to train.
        seeds: of the order within an epoch.
        device: where to compute.
    """

    split: Split
    indices: list[Tensor]
    config: TrainConfig
    seeds: Seeds
    device: torch.device


class PlainParallel(nn.Module):
    """A convolution with a 1x1 convolution beside it, as one writes it for one client."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.adapter = nn.Conv2d(
            base.in_channels, base.out_channels, 1, stride=base.stride, groups=base.groups, bias=False
        )
        nn.init.zeros_(self.adapter.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both."""
        return self.base(x) + self.adapter(x)


def make_cohort(arguments: argparse.Namespace, precision: Precision) -> Cohort:
    """Clients of equal size with random images and labels."""
    generator = Seeds(arguments.seed).torch("benchmark")
    count = arguments.clients * arguments.samples
    images = torch.randint(256, (count, PIXELS, PIXELS, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    config = TrainConfig(lr=0.01, batch_size=arguments.batch, precision=precision, device=arguments.device)
    indices = list(torch.arange(count).split(arguments.samples))
    return Cohort(
        Split(images.permute(0, 3, 1, 2), labels),
        indices,
        config,
        Seeds(arguments.seed),
        config.resolve_device(),
    )


def together(model: AdaptedModel, cohort: Cohort, chunk: int) -> Way:
    """Our way, `chunk` clients at a time."""

    def way() -> list[Params]:
        ends: list[Params] = []
        for begin in range(0, len(cohort.indices), chunk):
            clients = list(range(begin, min(begin + chunk, len(cohort.indices))))
            batches = cohort_batches(
                cohort.split,
                [cohort.indices[client] for client in clients],
                clients,
                round=1,
                seeds=cohort.seeds,
                batch_size=cohort.config.batch_size,
                epochs=cohort.config.epochs,
                augment=Augment(pad=0, flip=False),
            )
            start = expand(model.start, len(clients))
            trained = train(model, start, batches, cohort.config, lr=cohort.config.lr, mean=MEAN, std=STD)
            ends += [pick(trained.params, place) for place in range(len(clients))]
        return ends

    return way


def plain_loop(
    backbone: Backbone, model: AdaptedModel, cohort: Cohort, memory_format: torch.memory_format
) -> Way:
    """The plain loop, with the same trained tensors, the same start and the same batches."""
    config, device = cohort.config, cohort.device
    network = copy.deepcopy(backbone.module)
    for site in model.sites:
        network.set_submodule(site.name, PlainParallel(network.get_submodule(site.name)))
    network.to(device, memory_format=memory_format).eval()
    parameters = dict(network.named_parameters())
    trained = {ours: parameters[ours] for ours in model.start}
    for parameter in trained.values():
        parameter.requires_grad_()
    begin_with = {name: model.start[name].to(device).view_as(tensor) for name, tensor in trained.items()}
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    orders = [
        schedule(
            len(own), config.batch_size, config.epochs, cohort.seeds.torch("batches", round=1, client=client)
        )
        for client, own in enumerate(cohort.indices)
    ]

    def way() -> list[Params]:
        ends: list[Params] = []
        for own, order in zip(cohort.indices, orders, strict=True):
            network.load_state_dict(begin_with, strict=False)
            optimizer = torch.optim.SGD(trained.values(), lr=config.lr, momentum=config.momentum)
            for row in order:
                places = own[row[row >= 0]]
                images = (cohort.split.images[places].to(device).float() / 255 - mean) / std
                optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    logits = network(images.contiguous(memory_format=memory_format))
                functional.cross_entropy(logits.float(), cohort.split.labels[places].to(device)).backward()
                optimizer.step()
            ends.append(
                {name: tensor.detach().clone().view_as(model.start[name]) for name, tensor in trained.items()}
            )
        return ends

    return way


def difference(first: list[Params], second: list[Params], start: Params) -> float:
    """The largest distance of a client's two results, as a share of how far it moved."""

    def distance(a: Params, b: Params) -> float:
        return float(sum((a[name] - b[name]).double().square().sum() for name in start) ** 0.5)

    return max(distance(a, b) / distance(a, start) for a, b in zip(first, second, strict=True))


def timed(way: Way, device: torch.device) -> tuple[float, float]:
    """Seconds and processor seconds of one pass."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, precision: Precision, arguments: argparse.Namespace) -> dict[str, Any]:
    """All ways on one backbone in one precision."""
    cohort = make_cohort(arguments, precision)
    backbone = create("backbone", name, {"weights": "random"})(CLASSES, cohort.seeds.torch("backbone"))
    adapter, policy = create("adapter", "parallel"), create("norm policy", "frozen")
    model = attach(backbone, adapter, policy, cohort.seeds.torch("adapter"))
    formats = {"plain loop": torch.contiguous_format, "plain loop, channels last": torch.channels_last}
    ways: dict[str, Way] = {
        label: plain_loop(backbone, model, cohort, memory_format) for label, memory_format in formats.items()
    }
    model.to(cohort.device, cohort.config.dtype)
    ways |= {f"K={chunk}": together(model, cohort, chunk) for chunk in arguments.chunks}
    expected = ways["plain loop"]()
    differences, startup = {}, {}
    for label, way in ways.items():
        begun = time.perf_counter()
        ends = way()
        startup[label] = time.perf_counter() - begun
        differences[label] = difference(expected, ends, model.start)
        if not differences[label] <= TOLERANCE[precision]:
            sys.exit(
                f"{name} {precision}: {label!r} and the plain loop differ by {differences[label]:.1e}; not the same work"
            )
    passes: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}
    for repetition in range(arguments.repetitions):
        labels = list(ways)
        # Nobody always comes after the same one.
        turn = repetition % len(labels)
        for label in labels[turn:] + labels[:turn]:
            passes[label].append(timed(ways[label], cohort.device))
    return {
        "backbone": name,
        "precision": precision,
        "images": arguments.clients * arguments.samples,
        "ways": {
            label: summary(own, passes, arguments)
            | {"first_s": startup[label], "difference": differences[label]}
            for label, own in passes.items()
        },
    }


def summary(
    own: list[tuple[float, float]],
    passes: dict[str, list[tuple[float, float]]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One way in numbers: medians, and medians of its ratios to the others, repetition by repetition."""
    images = arguments.clients * arguments.samples
    walls, cpus = [wall for wall, _ in own], [cpu for _, cpu in own]
    result: dict[str, Any] = {
        "wall_s": walls,
        "cpu_s": cpus,
        "images_per_s": images / statistics.median(walls),
        "images_per_cpu_s": images / statistics.median(cpus),
    }
    for key, base in (
        ("plain", "plain loop"),
        ("channels_last", "plain loop, channels last"),
        ("one", "K=1"),
    ):
        if base in passes:
            ratios = [theirs[0] / ours[0] for theirs, ours in zip(passes[base], own, strict=True)]
            result[f"times_{key}"] = {
                "median": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
            }
    return result


def show(result: dict[str, Any]) -> None:
    """One table."""
    print(f"\n{result['backbone']}, {result['precision']}, {result['images']} images a pass")
    print(f"{'way':<28}{'images/s':>10}{'per CPU s':>11}{'x plain':>9}{'x ch.last':>11}{'x K=1':>8}")
    for label, way in result["ways"].items():
        ratios = [
            way[f"times_{key}"]["median"] if f"times_{key}" in way else float("nan")
            for key in ("plain", "channels_last", "one")
        ]
        print(
            f"{label:<28}{way['images_per_s']:>10.0f}{way['images_per_cpu_s']:>11.0f}"
            f"{ratios[0]:>9.2f}{ratios[1]:>11.2f}{ratios[2]:>8.2f}"
        )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file"
    )
    parser.add_argument(
        "--backbones", nargs="+", default=["resnet20", "resnet26"], choices=["resnet20", "resnet26"]
    )
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--samples", type=int, default=10, help="images of a client")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 5, 10, 25, 50])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small numbers, only to see that it works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.backbones, arguments.clients, arguments.samples = ["resnet20"], 4, 4
        arguments.batch, arguments.chunks, arguments.repetitions = 3, [1, 4], 2
    return arguments


def main() -> None:
    """Measures, prints and writes."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # As a run does it: numbers too small to matter would otherwise slow a processor down, for every way alike.
    torch.set_flush_denormal(True)
    results = []
    for name in arguments.backbones:
        for precision in arguments.precisions:
            results.append(measure(name, precision, arguments))
            show(results[-1])
    device = torch.device(arguments.device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    write(
        arguments.out,
        results,
        hardware=hardware,
        threads=torch.get_num_threads(),
        seed=arguments.seed,
        settings=vars(arguments),
    )


if __name__ == "__main__":
    main()

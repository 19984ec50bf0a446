"""Images a second of prediction with many adapters on one backbone: all in one batch, against switching.

``python benchmarks/many_adapters.py --out DIR`` predicts one batch of images, spread over 1, 10 and 100 adapters in a
seeded random order, in three ways: the images of all adapters as one batch on the client axis; adapter by adapter, each
with its own images as a batch; and image by image. Before anything is timed the three are compared. Ways take turns,
so that a machine that gets slower in the course of it does so for all of them. The images are noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from document import write
from torch import Tensor

from fedadapt.adapters import AdapterBank, attach
from fedadapt.registry import create
from fedadapt.seeds import Seeds

TOLERANCE = 1e-3
"""Largest relative difference between the ways, in fp32."""

ADAPTERS: dict[str, dict[str, Any]] = {"parallel": {}, "low_rank": {"rank": 8}, "seeded": {"rank": 8}}


def make_bank(backbone: str, adapter: str, count: int, seeds: Seeds) -> AdapterBank:
    """So many adapters, each moved from the start by noise of its own."""
    options = {"weights": "random"} if backbone == "resnet26" else {}
    network = create("backbone", backbone, options)(10, seeds.torch("backbone"))
    made = create("adapter", adapter, ADAPTERS[adapter])
    bank = AdapterBank(attach(network, made, create("norm policy", "frozen"), seeds.torch("adapter")))
    for number in range(count):
        generator = seeds.torch("noise", client=number)
        bank.add(
            str(number),
            {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in bank.model.start.items()},
        )
    return bank


def ways(bank: AdapterBank, images: Tensor, names: list[str]) -> dict[str, Callable[[], Tensor]]:
    """The three ways to predict, by name."""
    by_adapter = {name: [place for place, own in enumerate(names) if own == name] for name in bank.names}

    def switching() -> Tensor:
        answer = torch.empty(len(images), 10)
        for name, places in by_adapter.items():
            if places:
                answer[places] = bank.predict(images[places], name)
        return answer

    def singly() -> Tensor:
        return torch.cat([bank.predict(images[place : place + 1], name) for place, name in enumerate(names)])

    return {
        "one batch": lambda: bank.predict(images, names),
        "switching by adapter": switching,
        "switching by image": singly,
    }


def measure(adapter: str, count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One adapter and one number of them: medians over the repetitions, and ratios within them."""
    seeds = Seeds(arguments.seed)
    bank = make_bank(arguments.backbone, adapter, count, seeds)
    generator = seeds.torch("images")
    images = torch.randn(arguments.images, 3, 32, 32, generator=generator)
    order = torch.randperm(arguments.images, generator=generator) % count
    named = ways(bank, images, [str(number) for number in order.tolist()])
    answers = {label: way() for label, way in named.items()}
    (first, *others) = answers.values()
    difference = max(float((first - other).abs().max() / first.abs().max()) for other in others)
    if difference > TOLERANCE:
        raise SystemExit(f"the ways differ by {difference:.1e}")
    walls: dict[str, list[float]] = {label: [] for label in named}
    cpus: dict[str, list[float]] = {label: [] for label in named}
    for _ in range(arguments.repetitions):
        for label, way in named.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            walls[label].append(time.perf_counter() - wall)
            cpus[label].append(time.process_time() - cpu)
    one = walls["one batch"]
    return {
        "adapter": adapter,
        "adapters": count,
        "images": arguments.images,
        "difference": difference,
        "ways": {
            label: {
                "wall_s": walls[label],
                "cpu_s": cpus[label],
                "images_per_s": arguments.images / statistics.median(walls[label]),
                "images_per_cpu_s": arguments.images / statistics.median(cpus[label]),
                "one_batch_is_times": statistics.median(
                    theirs / ours for theirs, ours in zip(walls[label], one, strict=True)
                ),
            }
            for label in named
        },
    }


def show(result: dict[str, Any]) -> None:
    """One table."""
    print(f"\n{result['adapters']} x {result['adapter']}, {result['images']} images")
    for label, way in result["ways"].items():
        print(
            f"{label:<24}{way['images_per_s']:>9.0f} images/s{way['images_per_cpu_s']:>9.0f} a CPU second"
            f"{way['one_batch_is_times']:>8.2f}x as long as one batch"
        )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the file"
    )
    parser.add_argument("--backbone", default="resnet20", choices=["resnet20", "resnet26"])
    parser.add_argument("--adapters", nargs="+", default=["parallel", "seeded"], choices=list(ADAPTERS))
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measures, prints and writes."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    results = []
    for adapter in arguments.adapters:
        for count in arguments.counts:
            results.append(measure(adapter, count, arguments))
            show(results[-1])
    write(
        arguments.out,
        results,
        threads=torch.get_num_threads(),
        backbone=arguments.backbone,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()

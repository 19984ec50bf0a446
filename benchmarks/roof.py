"""How fast local training could be here at best: the convolutions that every simulator has to do, by themselves.

``python benchmarks/roof.py`` measures, in fp32 on one thread and by turns, one step of ResNet-20 with adapters: of the
plain loop, of fedadapt with clients side by side, and nothing but its convolutions, forwards and (but for the first) to
the gradient of their input. What the plain loop takes over what the convolutions take is how many times faster a step
without any other work would be. It writes one JSON file. ``--compiled`` adds fedadapt compiled by torch, which takes
minutes and gigabytes first.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedadapt.adapters import AdaptedModel, attach
from fedadapt.backbones.resnet import cifar_resnet
from fedadapt.experiment.build import processor
from fedadapt.params import expand
from fedadapt.registry import create
from fedadapt.training.processor import tuned_processor

HERE = Path(__file__).parent
sys.path.append(str(HERE / "peers"))

from work import adapted, trained  # noqa: E402 - a folder of scripts

WORKS = {"W1": (10, 32), "W2": (20, 10)}
"""Clients in a chunk, and images of a client's step."""
TURNS = 9
Step = Callable[[], object]


def plain(images: Tensor, labels: Tensor, clients: int) -> Step:
    """One client after the other, as one writes it."""
    net = adapted(cifar_resnet(20, num_classes=10).eval())
    own = list(zip(images.chunk(clients), labels.chunk(clients), strict=True))

    def step() -> None:
        for x, y in own:
            torch.autograd.grad(functional.cross_entropy(net(x), y), list(trained(net).values()))

    return step


def fused(images: Tensor, labels: Tensor, clients: int, *, compiled: bool) -> Step:
    """All clients on one axis."""
    generator = torch.Generator().manual_seed(0)
    backbone = create("backbone", "resnet20")(10, generator)
    model: AdaptedModel = attach(
        backbone, create("adapter", "parallel"), create("norm policy", "frozen"), generator
    )
    model.to("cpu", torch.float32)
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in expand(model.start, clients).items()}

    def forward(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(model.module, tensors, (images,))
        return logits

    run = torch.compile(forward) if compiled else forward

    def step() -> None:
        loss = functional.cross_entropy(run(tensors, images), labels) * clients
        torch.autograd.grad(loss, list(tensors.values()))

    return step


def convolutions(images: Tensor) -> tuple[Step, int]:
    """Nothing else, and how many operations it is."""
    net, seen = cifar_resnet(20, num_classes=10).eval(), []

    def see(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append((conv, inputs[0], torch.randn_like(output)))

    handles = [conv.register_forward_hook(see) for conv in net.modules() if isinstance(conv, nn.Conv2d)]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    once = [2 * conv.weight.numel() * gradient.numel() // conv.out_channels for conv, _, gradient in seen]

    def step() -> None:
        with torch.no_grad():
            for number, (conv, x, gradient) in enumerate(seen):
                conv(x)
                if number:
                    torch.ops.aten.convolution_backward(
                        gradient, x, conv.weight, None, conv.stride, conv.padding, conv.dilation,
                        False, [0, 0], 1, [True, False, False],
                    )  # fmt: skip

    return step, sum(once) + sum(once[1:])


def product() -> tuple[Step, int]:
    """A product of two large matrices, to compare speeds with."""
    one = torch.randn(1024, 1024)
    return lambda: one @ one, 2 * 1024**3


def measure(steps: dict[str, Step]) -> dict[str, float]:
    """Processor seconds of each, medians of turns."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(TURNS + 1):
        for name, step in steps.items():
            begun = time.process_time()
            step()
            if turn:
                found[name].append(time.process_time() - begun)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def roof(clients: int, batch: int, *, compiled: bool) -> dict[str, Any]:
    """Of one work."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(clients * batch, 3, 32, 32, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (len(images),), generator=generator)
    (alone, operations), (best, multiplied) = convolutions(images), product()
    steps = {
        "plain loop": plain(images, labels, clients),
        "fedadapt": fused(images, labels, clients, compiled=False),
        "convolutions": alone,
        "product": best,
    }
    if compiled:
        steps["fedadapt, compiled"] = fused(images, labels, clients, compiled=True)
    seconds = measure(steps)
    others, least = seconds["plain loop"], seconds["convolutions"]
    return {
        "clients": clients,
        "batch": batch,
        "cpu_s": seconds,
        "times_faster": {name: others / own for name, own in seconds.items() if name != "product"},
        "gflops": {
            "convolutions": operations / least / 1e9,
            "product": multiplied / seconds["product"] / 1e9,
        },
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "roof_amd-epyc.json")
    parser.add_argument("--works", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    document: dict[str, Any] = {
        "hardware": {"name": processor(), "machine": platform.machine(), "threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    for name in arguments.works:
        with tuned_processor():
            document[name] = roof(*WORKS[name], compiled=arguments.compiled)
        print(name, json.dumps(document[name], indent=1))
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

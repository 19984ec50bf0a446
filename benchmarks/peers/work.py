"""The works that every simulator does, and how a process is told to do one round of one of them.

Every network, image, batch size, step and trained tensor is the same; whom a round asks is each simulator's own draw.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD, LR, MOMENTUM, CLASSES = 0.5, 0.25, 0.01, 0.9, 10
POOL = 4096
"""Images there are; clients of a larger federation share them."""


@dataclass(frozen=True)
class Work:
    """A round.

    Args:
        clients: registered.
        cohort: asked in a round.
        samples: images of a client, one epoch.
        batch: of a step.
        pixels: of a side.
        width: of the ResNet-20.
        adapter: what is trained and sent, adapters or all of it.
        trains: whether a client does; otherwise it sends back what it got.
    """

    clients: int
    cohort: int
    samples: int
    batch: int
    pixels: int
    width: float
    adapter: str = "parallel"
    trains: bool = True

    def images(self) -> Tensor:
        """The pool, bytes."""
        generator = torch.Generator().manual_seed(0)
        shape = (POOL, self.pixels, self.pixels, 3)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)

    def labels(self) -> Tensor:
        """Of the pool."""
        return torch.randint(CLASSES, (POOL,), generator=torch.Generator().manual_seed(1))

    def indices(self, client: int) -> Tensor:
        """Places in the pool of a client's images."""
        return torch.arange(client * self.samples, (client + 1) * self.samples) % POOL


WORKS = {
    "W1": Work(10, 10, 256, 32, 32, 1.0),
    "W2": Work(1_000, 100, 20, 10, 32, 1.0),
    "W3": Work(100_000, 500, 8, 4, 16, 0.25),
    "cohort": Work(2_000, 1_000, 8, 4, 16, 0.25),
    "W4, 10 x 10 kB": Work(10, 10, 8, 4, 16, 0.25, trains=False),
    "W4, 100 x 10 kB": Work(100, 100, 8, 4, 16, 0.25, trains=False),
    "W4, 10 x 44 MB": Work(10, 10, 8, 4, 16, 6.4, "full", trains=False),
}


class Parallel(nn.Module):
    """A frozen convolution with a trained 1x1 beside it."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.adapter = nn.Conv2d(base.in_channels, base.out_channels, 1, stride=base.stride, bias=False)
        nn.init.zeros_(self.adapter.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both."""
        return self.base(x) + self.adapter(x)


def network(work: Work) -> nn.Module:
    """The network as one writes it for one client: adapters, norm affines and head are trained."""
    from fedadapt.backbones.resnet import cifar_resnet

    torch.manual_seed(0)
    net = cifar_resnet(20, width=work.width, num_classes=CLASSES).eval()
    if work.adapter == "full":
        return net
    return adapted(net)


def adapted(net: nn.Module) -> nn.Module:
    """`net` with a branch beside every convolution, of which branches, norm affines and head are trained."""
    net.requires_grad_(requires_grad=False)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            net.set_submodule(name, Parallel(module))
            net.get_submodule(name).adapter.requires_grad_()
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.requires_grad_()
    return net


def trained(net: nn.Module) -> dict[str, Tensor]:
    """Its trained tensors."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def use_threads() -> None:
    """Has this process compute with as many threads as it was started for."""
    torch.set_num_threads(int(os.environ.get("BENCHMARK_THREADS", "1")))
    torch.set_flush_denormal(True)


@cache
def held(work: Work) -> tuple[nn.Module, Tensor, Tensor]:
    """What a process keeps between clients: network, images and labels. Of a pool, each process has its own."""
    use_threads()
    return network(work), work.images(), work.labels()


def train_client(work: Work, net: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    """One epoch of SGD, as one writes it."""
    if not work.trains:
        return
    optimizer = torch.optim.SGD(trained(net).values(), lr=LR, momentum=MOMENTUM)
    for rows in torch.randperm(len(labels)).split(work.batch):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net((images[rows].float() / 255 - MEAN) / STD)
        functional.cross_entropy(logits.float(), labels[rows]).backward()
        optimizer.step()


def tree_cpu_s(root: int) -> float:
    """Processor seconds of a process and all that it started and that live."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = int(fields[11]) + int(fields[12])
    total, tree = 0, {root}
    grown = True
    while grown:
        more = {p for p, parent in parents.items() if parent in tree} - tree
        grown, tree = bool(more), tree | more
    total = sum(spent.get(p, 0) for p in tree)
    return total / os.sysconf("SC_CLK_TCK")


def parse() -> tuple[Work, argparse.Namespace]:
    """The command line of a simulator's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("precision", choices=["fp32", "bf16"])
    parser.add_argument(
        "--share", type=int, default=1, help="of the cohort or of the samples, one in so many"
    )
    parser.add_argument("--cpus", type=int, default=1, help="of a client, where a simulator asks")
    arguments = parser.parse_args()
    work = WORKS[arguments.work]
    # A cross-silo cohort stays what it is.
    name = "samples" if work.cohort == work.clients else "cohort"
    fewer = {name: getattr(work, name) // arguments.share}
    use_threads()
    return replace(work, **fewer), arguments


BEGAN = time.perf_counter()


def wait_for_order() -> bool:
    """Waits until a round is asked for; False if there are no more."""
    return sys.stdin.readline().strip() == "round"


def say(**facts: float) -> None:
    """Tells the driver."""
    print("REPORT " + json.dumps(facts), flush=True)


class Clock:
    """Wall and processor time of a round."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), tree_cpu_s(os.getpid())

    def stop(self) -> None:
        """Tells the driver what passed."""
        say(wall_s=time.perf_counter() - self.wall, cpu_s=tree_cpu_s(os.getpid()) - self.cpu)


def obey(play: Callable[[], None]) -> None:
    """Plays a round, which is start-up, and then one for each order."""
    play()
    say(startup_s=time.perf_counter() - BEGAN)
    while wait_for_order():
        clock = Clock()
        play()
        clock.stop()

"""What bounds local training here: a step against full fine-tuning's, kept features, data, memory, growth, chunks.

``python benchmarks/limits.py step features data memory growth curve`` measures each of them and writes one JSON file,
in which what was measured before stays. ``curve`` also draws the learning curves of both chunk sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from simulation import HERE, ROOT, Player

import fedadapt
from fedadapt.adapters import attach
from fedadapt.data.augment import Augment, normalise
from fedadapt.data.batches import Batch, cohort_batches
from fedadapt.data.dataset import Split
from fedadapt.experiment.build import processor
from fedadapt.federation.features import frozen_features
from fedadapt.params import expand
from fedadapt.registry import create
from fedadapt.runs.store import RunStore
from fedadapt.seeds import Seeds
from fedadapt.training.config import TrainConfig
from fedadapt.training.local import train

MOMENTS = ((0.5,) * 3, (0.25,) * 3)
STILL = Augment(pad=0, flip=False)
FEW, MANY = 4, 20
"""Clients of a chunk between which the memory of one more is measured."""


class Chunk:
    """Clients that train together on noise.

    Args:
        backbone: its name.
        adapter: likewise.
        clients: K.
        batch: images of a client's step.
        steps: of each.
        options: of the adapter.
        augment: of the images.
        keeps: whether what the frozen trunk makes of images is kept.
    """

    def __init__(
        self,
        backbone: str,
        adapter: str,
        clients: int,
        batch: int,
        steps: int,
        *,
        options: Mapping[str, Any] | None = None,
        augment: Augment = STILL,
        keeps: bool = False,
    ) -> None:
        seeds, count = Seeds(0), clients * batch * steps
        generator = seeds.torch("benchmark")
        images = torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
        self.split = Split(images.permute(0, 3, 1, 2), torch.randint(10, (count,), generator=generator))
        weights = {"weights": "random"} if backbone == "resnet26" else {}
        network = create("backbone", backbone, weights)(10, seeds.torch("backbone"))
        policy = create("norm policy", "frozen")
        self.model = attach(network, create("adapter", adapter, options), policy, seeds.torch("adapter"))
        self.config = TrainConfig(lr=0.01, batch_size=batch, device="cpu")
        self.model.to(torch.device("cpu"), self.config.dtype)
        self.indices, self.seeds = list(torch.arange(count).split(batch * steps)), seeds
        self.augment = augment
        self.features = frozen_features(self.model, self.split, augment, *MOMENTS) if keeps else None

    def batches(self) -> Iterator[Batch]:
        """One epoch of all."""
        return cohort_batches(
            self.split if self.features is None else self.features.labels_only,
            self.indices,
            list(range(len(self.indices))),
            round=1,
            seeds=self.seeds,
            batch_size=self.config.batch_size,
            epochs=1,
            augment=self.augment,
        )

    def train(self) -> None:
        """One epoch of all."""
        mean, std = MOMENTS
        train(
            self.model if self.features is None else self.features.model,
            expand(self.model.start, len(self.indices)),
            self.batches(),
            self.config,
            lr=0.01,
            mean=mean,
            std=std,
            inputs=None if self.features is None else self.features.inputs,
        )

    def prepare(self) -> None:
        """One epoch's images, cut, augmented and normalised, and nothing done with them."""
        for batch in self.batches():
            normalise(batch.images, *MOMENTS, torch.float32)


def by_turns(works: Mapping[str, Callable[[], None]], turns: int = 5) -> dict[str, list[float]]:
    """Processor time of each work, so many times after a first one that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(1 + turns):
        for name in list(works)[:: 1 if repetition % 2 else -1]:
            begun = time.process_time()
            works[name]()
            if repetition:
                spent[name].append(time.process_time() - begun)
    return spent


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of ratios, turn by turn."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def step() -> dict[str, Any]:
    """Processor time of a step with adapters over that of full fine-tuning, ResNet-26, batch 64, one client."""
    works = {name: Chunk("resnet26", name, 1, 64, 2).train for name in ("parallel", "full")}
    # The target is near, and single turns are some hundredths apart.
    spent = by_turns(works, turns=25)
    return {"cpu_s": spent, "ratio": ratio(spent["parallel"], spent["full"]), "wanted": 0.70}


def features() -> dict[str, Any]:
    """Processor time of steps on images over that on kept features, ResNet-26, batch 32, one client, images seen."""
    found: dict[str, Any] = {}
    above = {"sites": {"include": ["layer3.*"], "norms": "above"}}
    for name, adapter, options in (("head", "head", None), ("last stage", "parallel", above)):
        spent = by_turns({
            what: Chunk("resnet26", adapter, 1, 32, 2, options=options, keeps=keeps).train
            for what, keeps in (("images", False), ("features", True))
        })  # fmt: skip
        found[name] = {"cpu_s": spent, "ratio": ratio(spent["images"], spent["features"])}
    return found


def data() -> dict[str, Any]:
    """Processor time of preparing images, with crops and flips, over that of training on them, ResNet-20."""
    found: dict[str, Any] = {}
    for name, clients, batch in (("W1", 10, 32), ("W2", 20, 10)):
        chunk = Chunk("resnet20", "parallel", clients, batch, 2, augment=Augment())
        spent = by_turns({"prepare": chunk.prepare, "train": chunk.train})
        found[name] = {"cpu_s": spent, "ratio": ratio(spent["prepare"], spent["train"])}
    return found


def peak(clients: int) -> None:
    """Prints the peak memory that training so many takes beyond what it starts from, and what autograd keeps."""
    Chunk("resnet20", "parallel", 1, 10, 1).train()
    chunk, kept = Chunk("resnet20", "parallel", clients, 10, 2), {}
    frozen = {tensor.untyped_storage().data_ptr() for tensor in chunk.model.start.values()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk.train()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        one = Chunk("resnet20", "parallel", clients, 10, 1)
        one.train()
    values = sum(tensor.numel() for tensor in chunk.model.start.values())
    print(json.dumps({"peak": 1024 * (after - before), "kept": sum(kept.values()), "values": values}))


def memory() -> dict[str, Any]:
    """Bytes of one more client in a chunk, against its tensors, gradients, momentum and activations."""
    found = {}
    for clients in (FEW, MANY):
        command = [sys.executable, __file__, "--peak", str(clients)]
        found[clients] = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    few, many = found[FEW], found[MANY]
    one_more = (many["peak"] - few["peak"]) / (MANY - FEW)
    activations = (many["kept"] - few["kept"]) / (MANY - FEW)
    tensors = 3 * 4 * few["values"]
    return {
        "one_more": one_more,
        "tensors_gradients_momentum": tensors,
        "activations": activations,
        "ratio": one_more / (tensors + activations),
        "wanted": 1.3,
    }


def exponent(points: dict[int, float]) -> float:
    """The slope of a line through the logarithms."""
    return statistics.linear_regression(
        [math.log(x) for x in points], [math.log(y) for y in points.values()]
    ).slope


def growth() -> dict[str, Any]:
    """How the time of a round grows with the cohort, and with the samples of each of ten clients."""
    found: dict[str, Any] = {"wanted": 1.05}
    for name, work, whole, shares in (
        ("cohort", "cohort", 1_000, (100, 30, 10, 3, 1)),
        ("samples", "W1", 256, (16, 8, 4, 2)),
    ):
        points = {}
        for share in shares:
            with Player("fedadapt/fp32", work, share) as player:
                points[whole // share] = statistics.median(player.play()["cpu_s"] for _ in range(3))
        found[name] = {"cpu_s": points, "exponent": exponent(points)}
    return found


def curve() -> dict[str, Any]:
    """Accuracy by round of one recipe with chunks of one client and of all."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    found: dict[str, Any] = {}
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for chunk, style in ((1, "-"), (10, "--")):
        document = {
            "name": f"chunk-{chunk}",
            "rounds": 8,
            "data": {"num_clients": 10, "limit": 600},
            "train": {"lr": 0.05, "batch_size": 16, "device": "cpu"},
            "engine": {"name": "local", "chunk": chunk},
        }
        with tempfile.TemporaryDirectory() as folder:
            path = fedadapt.run(fedadapt.make_config(document), Path(folder))
            with RunStore.open(path) as store:
                accuracy = [record.metrics["accuracy"] for record in store.rounds()]
        found[f"K={chunk}"] = accuracy
        axes.plot(
            range(len(accuracy)),
            accuracy,
            style,
            label="one client at a time" if chunk == 1 else f"{chunk} clients together",
            linewidth=2,
        )
    axes.set(xlabel="round", ylabel="accuracy")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "images" / "chunks.svg", metadata={"Date": None})
    one, many = found.values()
    return found | {"largest_difference": max(abs(a - b) for a, b in zip(one, many, strict=True))}


PARTS = {"step": step, "features": features, "data": data, "memory": memory, "growth": growth, "curve": curve}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "limits_amd-epyc.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if arguments.peak:
        peak(arguments.peak)
        return
    document = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    document["hardware"] = {"name": processor(), "machine": platform.machine(), "threads": 1}
    document["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    for part in arguments.parts or PARTS:
        document[part] = PARTS[part]()
        print(part, json.dumps(document[part], indent=1))
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Published weights through fedadapt's network, adapters and evaluation: does the published accuracy come out?

``python benchmarks/published.py WEIGHTS.npz data/cifar10.npz`` takes the ResNet-20 that Y. Idelbayev trained on
CIFAR-10 (github.com/akamaster/pytorch_resnet_cifar10, resnet20-12fca82f.th as float32 arrays), whose published test
error is 8.27 %, and measures it as a run measures its global model: by itself, with untrained parallel adapters
beside every convolution, and with these merged back into the convolutions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from document import write

from fedadapt.adapters import attach
from fedadapt.adapters.merge import merge
from fedadapt.backbones.backbone import finish
from fedadapt.backbones.resnet import cifar_resnet
from fedadapt.data.dataset import Split
from fedadapt.registry import create
from fedadapt.seeds import Seeds
from fedadapt.training.evaluate import evaluate

PUBLISHED = 0.9173
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Measures, says what it found and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    with np.load(arguments.images) as file:
        images = torch.from_numpy(file["x_test"]).permute(0, 3, 1, 2).contiguous()
        split = Split(images, torch.from_numpy(file["y_test"]).long())
    seeds = Seeds(0)
    net = finish("resnet20", cifar_resnet(20), "fc", 10, seeds.torch("backbone"), (MEAN, STD))
    with np.load(arguments.weights) as file:
        # The head is called otherwise there; names and shapes of all else are the same, or this fails.
        stored = {name.replace("linear.", "fc."): torch.from_numpy(file[name]) for name in file.files}
    counted = {n: t for n, t in net.module.state_dict().items() if n.endswith("num_batches_tracked")}
    net.module.load_state_dict(counted | stored)
    found = {}
    for name in ("head", "parallel"):
        model = attach(net, create("adapter", name), create("norm policy", "frozen"), seeds.torch("adapter"))
        found[name] = evaluate(model, model.start, split, MEAN, STD)["accuracy"]
    merged = merge(model, model.start).eval()
    with torch.inference_mode():
        pixels = (split.images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        right = sum(
            int((merged(x).argmax(1) == y).sum())
            for x, y in zip(pixels.split(500), split.labels.split(500), strict=True)
        )
    found["merged"] = right / len(split)
    for name, accuracy in found.items():
        print(f"{name:9} {accuracy:.2%}, published {PUBLISHED:.2%}")
    write(arguments.out, found, published=PUBLISHED, images=len(split))


if __name__ == "__main__":
    main()

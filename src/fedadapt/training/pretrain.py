"""Central training of a backbone on one data set, resumable to the epoch.

Everything a small machine can do for accuracy per second is here: bfloat16 convolutions on channels-last
maps, images resident as bytes, and *progressive resolution* (early epochs see smaller images, which cost
less and teach the same first lessons; M. Tan, Q. V. Le, *EfficientNetV2*, ICML 2021, section 4).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from fedadapt.data.augment import Augment, normalise
from fedadapt.data.dataset import Dataset, Split
from fedadapt.errors import RunError
from fedadapt.seeds import Seeds


class PretrainConfig(BaseModel):
    """How a backbone is pretrained: SGD with Nesterov momentum and a one-cycle rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=18, ge=1)
    batch_size: int = Field(default=256, ge=2)
    lr: float = Field(default=0.3, gt=0, description="the highest rate of the cycle")
    warmup_fraction: float = Field(default=0.15, ge=0, lt=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    resolutions: tuple[tuple[int, int], ...] = Field(
        default=((4, 16), (8, 24), (6, 32)), description="(epochs, pixels) one after the other; the last goes on"
    )
    pad: int = Field(default=4, ge=0)
    flip: bool = True
    bf16: bool = True
    seed: int = Field(default=0, ge=0)

    def pixels(self, epoch: int) -> int:
        """The image size of an epoch, counted from 0."""
        for epochs, pixels in self.resolutions:
            if epoch < epochs:
                return pixels
            epoch -= epochs
        return self.resolutions[-1][1]

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` (0..1): linear up, then half a cosine down to zero."""
        if progress < self.warmup_fraction:
            return self.lr * progress / self.warmup_fraction
        rest = (progress - self.warmup_fraction) / (1 - self.warmup_fraction)
        return self.lr * 0.5 * (1 + math.cos(math.pi * rest))


def top1(model: nn.Module, split: Split, mean: tuple[float, ...], std: tuple[float, ...]) -> float:
    """The share of `split` that `model` (in eval mode, fp32) classifies rightly."""
    device = next(model.parameters()).device
    right = 0
    with torch.inference_mode():
        for start in range(0, len(split), 500):
            images = normalise(split.images[start : start + 500].to(device), mean, std, torch.float32)
            labels = split.labels[start : start + 500].to(device)
            right += int((model(images).argmax(1) == labels).sum())
    return right / len(split)


def pretrain(
    model: nn.Module,
    dataset: Dataset,
    config: PretrainConfig,
    state_path: Path,
    *,
    device: str = "cpu",
    on_step: Callable[[int, int, float], None] = lambda epoch, step, loss: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> list[dict[str, Any]]:
    """Trains `model` in place and returns one log entry an epoch.

    After every epoch the weights, the momentum and the log go to `state_path` in one atomic replacement. If
    that file exists the training goes on from it, with the result it would have had without a stop.

    Args:
        model: freshly initialised, or anything of the same shape if there is a state to resume.
        dataset: its train split is trained on; its validation split, if any, is measured every epoch.
        config: the recipe.
        state_path: where the state lives until the training is over.
        device: where to compute.
        on_step: told of every step's loss.
        on_epoch: told of every finished epoch.

    Raises:
        RunError: `state_path` holds the state of another recipe or is damaged.
    """
    torch.set_flush_denormal(True)
    model.to(device, memory_format=torch.channels_last)
    weights = [p for p in model.parameters() if p.requires_grad]
    momenta = [torch.zeros_like(p) for p in weights]
    log = _restore(model, momenta, config, state_path) if state_path.exists() else []
    augment, seeds = Augment(pad=config.pad, flip=config.flip), Seeds(config.seed)
    steps = len(dataset.train) // config.batch_size
    for epoch in range(len(log), config.epochs):
        started, cpu_started = time.perf_counter(), time.process_time()
        generator = seeds.torch("pretrain", round=epoch)
        order = torch.randperm(len(dataset.train), generator=generator)
        draws = augment.draw(len(dataset.train), generator)
        total = 0.0
        model.train()
        for step in range(steps):
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            images = augment.apply(dataset.train.images[rows], draws.take(rows)).to(device)
            labels = dataset.train.labels[rows].to(device)
            loss = _step(model, weights, momenta, images, labels, dataset, config, epoch, step / steps)
            total += loss
            on_step(epoch, step, loss)
        entry = {
            "epoch": epoch + 1,
            "pixels": config.pixels(epoch),
            "train_loss": total / steps,
            "wall_s": round(time.perf_counter() - started, 1),
            "cpu_s": round(time.process_time() - cpu_started, 1),
        }
        model.eval()
        if dataset.validation is not None:
            entry["validation_top1"] = top1(model, dataset.validation, dataset.mean, dataset.std)
        log.append(entry)
        _store(model, momenta, config, log, state_path)
        on_epoch(entry)
    model.eval()
    return log


def _step(
    model: nn.Module,
    weights: list[nn.Parameter],
    momenta: list[Tensor],
    images: Tensor,
    labels: Tensor,
    dataset: Dataset,
    config: PretrainConfig,
    epoch: int,
    fraction: float,
) -> float:
    """One step of SGD with Nesterov momentum; weight decay on weights of two or more axes only."""
    inputs = normalise(images, dataset.mean, dataset.std, torch.float32)
    pixels = config.pixels(epoch)
    if pixels != inputs.shape[-1]:
        inputs = functional.interpolate(inputs, size=(pixels, pixels), mode="bilinear", antialias=True)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16):
        logits = model(inputs)
    loss = functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
    gradients = torch.autograd.grad(loss, weights)
    lr = config.rate((epoch + fraction) / config.epochs)
    with torch.no_grad():
        for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True):
            if weight.ndim > 1:
                gradient = gradient.add(weight, alpha=config.weight_decay)
            momentum.mul_(config.momentum).add_(gradient)
            weight.sub_(gradient.add(momentum, alpha=config.momentum), alpha=lr)
    return float(loss.detach())


def _store(
    model: nn.Module, momenta: list[Tensor], config: PretrainConfig, log: list[dict[str, Any]], path: Path
) -> None:
    tensors = {f"model.{name}": t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    tensors |= {f"momentum.{index}": t.cpu().contiguous() for index, t in enumerate(momenta)}
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, part, metadata={"config": config.model_dump_json(), "log": json.dumps(log)})
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


def _restore(
    model: nn.Module, momenta: list[Tensor], config: PretrainConfig, path: Path
) -> list[dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata["config"] != config.model_dump_json():
                raise RunError(f"{path} is the state of another recipe: {metadata['config']}; choose another --out")
            model.load_state_dict({name: file.get_tensor(f"model.{name}") for name in model.state_dict()})
            for index, momentum in enumerate(momenta):
                momentum.copy_(file.get_tensor(f"momentum.{index}"))
            return json.loads(metadata["log"])
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise RunError(f"{path} is not a readable pretraining state ({error}); delete it to start again") from error

"""Central training of a backbone on one data set, resumable to the epoch.

bfloat16 convolutions on channels-last maps, images resident as bytes, and two ways to spend the epochs well:
*mixup* (H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018,
equation 1), without which a small net learns 100,000 small images by heart; and *progressive resolution*
(M. Tan, Q. V. Le, *EfficientNetV2*, ICML 2021, section 4), which is cheap but costs accuracy at 32 pixels.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from fedadapt.data.augment import Augment, normalise
from fedadapt.data.dataset import Dataset, Split
from fedadapt.errors import ConfigError, RunError
from fedadapt.files import from_json, write_whole
from fedadapt.params import is_finite
from fedadapt.seeds import Seeds
from fedadapt.training.processor import tuned_processor


class PretrainConfig(BaseModel):
    """How a backbone is pretrained: SGD with Nesterov momentum and a one-cycle rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=0.2, gt=0, description="the highest rate of the cycle")
    warmup_fraction: float = Field(default=0.15, ge=0, lt=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    resolutions: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        default=(),
        description="(epochs, pixels) one after the other, the last goes on; none: as the images are",
    )
    mixup: float = Field(default=0.2, ge=0, description="alpha of the Beta distribution; 0 mixes nothing")
    pad: int = Field(default=4, ge=0)
    flip: bool = True
    bf16: bool = True
    seed: int = Field(default=0, ge=0)

    def pixels(self, epoch: int, full: int) -> int:
        """The image size of an epoch, counted from 0, where images have `full` pixels."""
        for epochs, pixels in self.resolutions:
            if epoch < epochs:
                return pixels
            epoch -= epochs
        return self.resolutions[-1][1] if self.resolutions else full

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


@tuned_processor()
def pretrain(
    model: nn.Module,
    dataset: Dataset,
    config: PretrainConfig,
    state_path: Path,
    *,
    started_from: str | None = None,
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
        started_from: digest of the weights that `model` comes with; None for random ones.
        device: where to compute.
        on_step: told of every step's loss.
        on_epoch: told of every finished epoch.

    Raises:
        ConfigError: a batch would be larger than the train split.
        RunError: `state_path` holds the state of another recipe or start, is damaged, or cannot be written; or training
            diverged, which leaves the state of the last epoch that did not.
    """
    model.to(device).to(memory_format=torch.channels_last)
    weights = [p for p in model.parameters() if p.requires_grad]
    momenta = [torch.zeros_like(p) for p in weights]
    # A state belongs to its recipe, images and start: what was learnt elsewhere must not be taken for this.
    start = [] if started_from is None else [started_from]
    identity = json.dumps(
        [config.model_dump(mode="json"), dataset.name, len(dataset.train), dataset.mean, dataset.std, *start]
    )
    log = _restore(model, momenta, identity, state_path) if state_path.exists() else []
    augment, seeds = Augment(pad=config.pad, flip=config.flip), Seeds(config.seed)
    steps = len(dataset.train) // config.batch_size
    if steps == 0:
        raise ConfigError(
            f"train.batch_size is {config.batch_size}, but there are {len(dataset.train)} train images"
        )
    for epoch in range(len(log), config.epochs):
        started, cpu_started = time.perf_counter(), time.process_time()
        generator, mixer = seeds.torch("pretrain", round=epoch), seeds.numpy("mixup", round=epoch)
        order = torch.randperm(len(dataset.train), generator=generator)
        draws = augment.draw(len(dataset.train), generator)
        pixels = config.pixels(epoch, dataset.train.images.shape[-1])
        total = 0.0
        model.train()
        for step in range(steps):
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            images = augment.apply(dataset.train.images[rows], draws.take(rows)).to(device)
            inputs = _resize(normalise(images, dataset.mean, dataset.std, torch.float32), pixels)
            share = float(mixer.beta(config.mixup, config.mixup)) if config.mixup else 1.0
            loss = _mixed_loss(model, inputs, dataset.train.labels[rows].to(device), share, config)
            gradients = torch.autograd.grad(loss, weights)
            _descend(weights, momenta, gradients, config.rate((epoch + step / steps) / config.epochs), config)
            total += float(loss.detach())
            on_step(epoch, step, float(loss.detach()))
        entry = {
            "epoch": epoch + 1,
            "pixels": pixels,
            "train_loss": total / steps,
            "wall_s": round(time.perf_counter() - started, 1),
            "cpu_s": round(time.process_time() - cpu_started, 1),
        }
        model.eval()
        if not math.isfinite(total) or not is_finite(dict(model.state_dict())):
            raise RunError(
                f"training diverged in epoch {epoch + 1}, its loss is {total / steps:g}; "
                f"lower train.lr, which is {config.lr:g}, and give another FILE"
            )
        if dataset.validation is not None:
            entry["validation_top1"] = top1(model, dataset.validation, dataset.mean, dataset.std)
        log.append(entry)
        _store(model, momenta, identity, log, state_path)
        on_epoch(entry)
    model.eval()
    return log


def _resize(inputs: Float[Tensor, "N C H W"], pixels: int) -> Float[Tensor, "N C h w"]:
    if pixels == inputs.shape[-1]:
        return inputs
    smaller = functional.interpolate(inputs, size=(pixels, pixels), mode="bilinear", antialias=True)
    return smaller.contiguous(memory_format=torch.channels_last)


def _mixed_loss(
    model: nn.Module,
    inputs: Float[Tensor, "N C H W"],
    labels: Int64[Tensor, " N"],
    share: float,
    config: PretrainConfig,
) -> Float[Tensor, ""]:
    """The loss of images mixed with those of the batch turned round, `share` of each its own."""
    if share < 1:
        inputs = inputs.lerp(inputs.flip(0), 1 - share)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.bf16):
        logits = model(inputs).float()
    own, other = (
        functional.cross_entropy(logits, target, label_smoothing=config.label_smoothing)
        for target in (labels, labels.flip(0))
    )
    return share * own + (1 - share) * other


@torch.no_grad()
def _descend(
    weights: Sequence[nn.Parameter],
    momenta: Sequence[Tensor],
    gradients: Sequence[Tensor],
    lr: float,
    config: PretrainConfig,
) -> None:
    """One step of SGD with Nesterov momentum; weight decay on weights of two or more axes only."""
    for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True):
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        decayed = gradient.add(weight, alpha=decay)
        momentum.mul_(config.momentum).add_(decayed)
        weight.sub_(decayed.add(momentum, alpha=config.momentum), alpha=lr)


def _store(
    model: nn.Module, momenta: list[Tensor], identity: str, log: list[dict[str, Any]], path: Path
) -> None:
    tensors = {f"model.{name}": t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    tensors |= {f"momentum.{index}": t.cpu().contiguous() for index, t in enumerate(momenta)}
    try:
        write_whole(path, save(tensors, metadata={"config": identity, "log": json.dumps(log)}))
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; make room or give another FILE, and give the command again"
        ) from error


def _restore(model: nn.Module, momenta: list[Tensor], identity: str, path: Path) -> list[dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata["config"] != identity:
                raise RunError(
                    f"{path} is the state of another recipe, data set or start: {metadata['config']}; choose another FILE"
                )
            model.load_state_dict({name: file.get_tensor(f"model.{name}") for name in model.state_dict()})
            for index, momentum in enumerate(momenta):
                momentum.copy_(file.get_tensor(f"momentum.{index}"))
            return from_json(metadata["log"])
    except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
        raise RunError(
            f"{path} is not a readable pretraining state ({error}); delete it to start again"
        ) from error

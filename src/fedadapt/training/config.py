"""How a client trains: what a run file says under ``[train]``."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from fedadapt.errors import ConfigError, NoDevice

Precision = Literal["fp32", "bf16"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(BaseModel):
    """Local training, the same for every client."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="of the rate over the rounds of a run"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd; starts at zero in every round")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="of adamw")
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(
        default=None, gt=0, description="largest gradient norm of a client's step"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    epochs: int = Field(default=1, ge=1, description="passes over a client's samples in a round")
    batch_size: int = Field(default=32, ge=1)
    precision: Precision = "fp32"
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")

    def rate(self, round: int, rounds: int) -> float:
        """The learning rate in a round, counted from 1, of a run of `rounds`."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (round - 1) / rounds))

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the network computes; trained tensors and updates are always fp32."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def resolve_device(self) -> torch.device:
        """The device to compute on: with ``auto`` a GPU if there is one.

        Raises:
            ConfigError: no device has such a name.
            NoDevice: there is none here.
        """
        return resolve_device(self.device, "train.device")


def resolve_device(name: str, key: str) -> torch.device:
    """The device of that name, with ``auto`` a GPU if there is one; `key` is what it is called in an error.

    Raises:
        ConfigError: no device has such a name.
        NoDevice: there is none here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key} is {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key} is {name!r}; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise NoDevice(
            f"{key} is {name!r}, but {torch.cuda.device_count()} GPUs are usable here; use auto or cpu"
        )
    return device

"""The network that a run has trained, as its server, a simulation or a site has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fedadapt.adapters import merge
from fedadapt.experiment.build import Experiment
from fedadapt.params import Params


@dataclass(frozen=True)
class Trained:
    """What comes out of a run.

    Args:
        experiment: the run, made again.
        params: the tensors, without client axis.
        round: that they are of.
        client: whose they are; None for the global ones.
    """

    experiment: Experiment
    params: Params
    round: int
    client: int | None = None

    def merged(self) -> nn.Module:
        """The plain network.

        Raises:
            AttachError: the adapter cannot be merged.
        """
        return merge(self.experiment.model, self.params)

    def metadata(self) -> dict[str, Any]:
        """What is written beside a network: class names and pixel moments, and where it is from."""
        experiment = self.experiment
        return {
            "backbone": experiment.backbone.name,
            "image": list(experiment.dataset.train.images.shape[1:]),
            "mean": experiment.mean,
            "std": experiment.std,
            "class_names": experiment.dataset.class_names,
            "run": experiment.config.name,
            "round": self.round,
            **({} if self.client is None else {"client": self.client}),
        }

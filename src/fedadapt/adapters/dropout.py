"""Dropout on what goes into a branch, drawn for each client by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedadapt.norms import Pass
from fedadapt.seeds import Seeds


class Dropout:
    """Called before a branch in training: each value of its input is 0 with probability `rate`, else grows.

    ``x_i <- x_i * m_i / (1 - rate)``, with m_i 1 where a number drawn from 0..1 is at least `rate`. A client's
    numbers follow from its noise of the step and the name of the site, sample by sample: neither who else is in the
    batch nor how far it is padded changes them, and whoever takes a gradient twice in one step drops the same values.

    Args:
        site: name of the layer.
        rate: 0..1.
        pass_: shared with the model; has the clients' noise.

    Source:
        N. Srivastava et al., *Dropout: A Simple Way to Prevent Neural Networks from Overfitting*, JMLR 2014,
        section 4, scaled in training and not in use.
    """

    def __init__(self, site: str, rate: float, pass_: Pass) -> None:
        self.site = site
        self.rate = rate
        self.pass_ = pass_

    def __call__(self, branch: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """What the branch is given instead; None to leave it."""
        del branch
        noise = self.pass_.noise
        if not noise:
            return None
        (x,) = given
        shape = (x.shape[0] // len(noise), *x.shape[1:])
        # On the processor, where every machine draws alike.
        drawn = [torch.rand(shape, generator=Seeds(n).torch(f"dropout {self.site}")) for n in noise]
        keep = (torch.cat(drawn) >= self.rate).to(x.device)
        return (x * keep / (1 - self.rate),)

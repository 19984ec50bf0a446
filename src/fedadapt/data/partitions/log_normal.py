"""Quantity skew: sizes are draws from a log-normal distribution."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition, check_clients, deal_sizes
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("partition", "log_normal")
def log_normal(
    *,
    sigma: Annotated[float, Field(ge=0, le=10)] = 1.0,
    min_size: Annotated[int, Field(ge=1)] = 1,
) -> Partition:
    """Quantity skew: client k gets a random share of the samples in proportion to ``exp(sigma z_k)``, z standard normal.

    Every client first gets `min_size` samples, the rest is shared out.

    Args:
        sigma: spread of sizes on a logarithmic scale; 0 gives all the same. The size Gini comes near
            ``erf(sigma / 2)``.
        min_size: samples that every client has at least.

    Source:
        Q. Li, Y. Diao, Q. Chen, B. He, *Federated Learning on Non-IID Data Silos: An Experimental Study*, ICDE 2022,
        section 4 (quantity skew).

    Differs:
        There the shares are drawn from a Dirichlet distribution.
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        check_clients(split, num_clients, min_size)
        weights = np.exp(sigma * seeds.numpy("partition").standard_normal(num_clients))
        return deal_sizes(split, weights, min_size, seeds)

    return deal

"""Quantity skew: sizes fall off as a power of the rank."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedadapt.data.dataset import Split
from fedadapt.data.holdings import Holdings
from fedadapt.data.partitions.base import Partition, check_clients, deal_sizes
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("partition", "power_law")
def power_law(
    *,
    exponent: Annotated[float, Field(ge=0, le=10)] = 1.0,
    min_size: Annotated[int, Field(ge=1)] = 1,
) -> Partition:
    """Quantity skew: client k, counted from 0, gets a random share in proportion to ``(k + 1) ** -exponent``.

    Every client first gets `min_size` samples, the rest is shared out. Client 0 is the largest.

    Args:
        exponent: how fast sizes fall; 0 gives all the same, 1 is Zipf's law.
        min_size: samples that every client has at least.

    Source:
        T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, *Federated Optimization in Heterogeneous
        Networks*, MLSys 2020, section 5.1 (sizes by a power law).
    """

    def deal(split: Split, num_clients: int, seeds: Seeds) -> Holdings:
        check_clients(split, num_clients, min_size)
        return deal_sizes(split, np.arange(1.0, num_clients + 1) ** -exponent, min_size, seeds)

    return deal

"""Clients come and go with the hours of their day."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from fedadapt.errors import ConfigError
from fedadapt.federation.sampling.available import Probability
from fedadapt.federation.sampling.base import Pool, Sampling, choose_available
from fedadapt.registry import register
from fedadapt.seeds import Seeds


@register("sampling", "diurnal")
def diurnal(
    *,
    mean: Probability = 0.5,
    swing: Probability = 0.5,
    period: Annotated[float, Field(gt=0)] = 24.0,
    zones: Probability = 0.5,
) -> Sampling:
    """Of the clients that are available, all are as likely; how many are follows the hours of the day.

    In round r client k is available with probability ``mean + swing sin(2 pi (r / period + zones u_k))``, u_k drawn
    once, evenly from 0 to 1.

    Args:
        mean: probability over the whole day.
        swing: how far it goes up and down.
        period: rounds of a day.
        zones: the part of a day that clients are spread over; 0 has all in one time zone, 1 around the earth.

    Raises:
        ConfigError: the probability would leave 0 to 1.
    """
    if not 0 <= mean - swing <= mean + swing <= 1:
        raise ConfigError(
            f"sampling 'diurnal' has mean={mean:g} and swing={swing:g}; mean - swing and mean + swing must be from 0 to 1"
        )

    def choose(pool: Pool, count: int, round: int, seeds: Seeds) -> list[int]:
        def here(client: int) -> bool:
            turn = round / period + zones * seeds.uniform("time zone", client=client)
            rate = mean + swing * math.sin(2 * math.pi * turn)
            return seeds.uniform("available", round=round, client=client) < rate

        return choose_available(here, pool.num_clients, count, round, seeds)

    return Sampling(choose)

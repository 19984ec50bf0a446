"""Some clients are there more often than others."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedadapt.errors import ConfigError
from fedadapt.federation.sampling.base import Pool, Sampling, choose_available
from fedadapt.registry import register
from fedadapt.seeds import Seeds

Probability = Annotated[float, Field(ge=0, le=1)]


@register("sampling", "available")
def available(*, least: Probability = 0.5, most: Probability = 1.0) -> Sampling:
    """Of the clients that are available, all are as likely; client k is with probability ``least + (most - least) u_k``.

    u_k is drawn once, evenly from 0 to 1, and whether the client is available anew in every round.

    Args:
        least: probability of the client that is there least.
        most: of the one that is there most.

    Raises:
        ConfigError: `least` is above `most`.
    """
    if least > most:
        raise ConfigError(
            f"sampling 'available' has least={least:g} above most={most:g}; exchange them, or make them equal"
        )

    def choose(pool: Pool, count: int, round: int, seeds: Seeds) -> list[int]:
        def here(client: int) -> bool:
            rate = least + (most - least) * seeds.uniform("availability", client=client)
            return seeds.uniform("available", round=round, client=client) < rate

        return choose_available(here, pool.num_clients, count, round, seeds)

    return Sampling(choose)

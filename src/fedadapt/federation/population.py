"""The clients of a simulation: who is asked, who answers, how fast, and with how much of the work done.

Every decision is a function of the seed, the round and the client alone. So it is the same however clients are put
together to be trained, whoever was asked before, and after a stop; and a client that is never asked costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedadapt.federation.sampling import Pool, Sampling
from fedadapt.seeds import Seeds


@dataclass(frozen=True)
class Conduct:
    """What a client makes of a request.

    Args:
        answers: whether it will; it may go away for good once it has the download.
        effort: the share of its local steps that it takes.
        takes_s: seconds until it is done.
        place: from 0 to 1; who is done at the same time comes in this order.
    """

    answers: bool
    effort: float
    takes_s: float
    place: float


@dataclass(frozen=True)
class Population:
    """Registered clients and their habits; by itself all who are asked do all their work in no time.

    Args:
        pool: who is registered.
        cohort: updates that a round is to take.
        seeds: of the run.
        sampling: whom to ask.
        over_selection: clients asked for each update wanted; the first who are done are taken.
        dropout: probability that a client does not answer.
        step_s: seconds of a local step on a median device.
        slowness: sigma of the log-normal factor by which a client is slower or faster, always the same.
        deadline_s: seconds after which a round takes no more updates; None for as long as it takes.
        least_work: the smallest share of its steps that a client takes; evenly drawn from there up to all.
    """

    pool: Pool
    cohort: int
    seeds: Seeds
    sampling: Sampling
    over_selection: float = 1.0
    dropout: float = 0.0
    step_s: float = 1.0
    slowness: float = 0.0
    deadline_s: float | None = None
    least_work: float = 1.0

    @property
    def asks(self) -> int:
        """How many clients a round asks, if so many can be had."""
        # Rounded first: 1.1 * 10 is a little more than 11.
        return math.ceil(round(self.cohort * self.over_selection, 9))

    def asked(self, round: int) -> list[int]:
        """Whom a round asks, sorted."""
        return self.sampling.choose(self.pool, self.asks, round, self.seeds)

    def conduct(self, round: int, client: int, num_steps: int) -> Conduct:
        """What a client makes of the request of a round.

        Args:
            round: counted from 1.
            client: its number.
            num_steps: local steps that the whole work is.
        """
        draw = self.seeds.uniform
        answers = self.dropout == 0 or draw("dropout", round=round, client=client) >= self.dropout
        effort = self.least_work
        if effort < 1:
            effort += (1 - effort) * draw("work", round=round, client=client)
        takes_s = math.ceil(effort * num_steps) * self.step_s * self.pace(client)
        return Conduct(answers, effort, takes_s, draw("place", round=round, client=client))

    def pace(self, client: int) -> float:
        """By how much a client is slower than the median device: ``exp(slowness z_k)``, z_k standard normal."""
        return math.exp(self.slowness * self.seeds.normal("speed", client=client)) if self.slowness else 1.0

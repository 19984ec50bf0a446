"""Clients that drop out, come late or are not needed any more, between the round and an engine that simulates them.

The order of events is that of a production system: more clients are asked than are needed, the first who are done are
taken, and when there are enough, or time is up, the others are told to stop. They have had their download, which is
counted, and send nothing; what they keep to themselves is as if they had not been asked.

Source:
    K. Bonawitz et al., *Towards Federated Learning at Scale: System Design*, MLSys 2019, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fedadapt.engines.engine import Engine
from fedadapt.federation.messages import Reply, Request
from fedadapt.federation.population import Conduct, Population
from fedadapt.runs.records import Outcome


class PopulationEngine:
    """Passes requests on to those who will answer in time, and says of the others why they do not.

    Args:
        engine: trains them.
        population: what clients do.
        num_steps: from a client's number to the local steps that its whole work is.
        on_clients: told how many clients of a round are done with, as they are.
    """

    def __init__(
        self,
        engine: Engine,
        population: Population,
        num_steps: Callable[[int], int],
        on_clients: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._engine, self._population, self._num_steps = engine, population, num_steps
        self.on_clients = on_clients

    @property
    def cpu_s(self) -> float:
        """That of the engine within."""
        return self._engine.cpu_s

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies of those who are on time, and failures with their cause for the others."""
        if requests and requests[0].round == 0:
            # The exchange before the first round is no training: everybody is waited for.
            self._engine.on_clients = self.on_clients
            return list(self._engine.exchange(requests))
        replies: list[Reply] = []
        coming: list[tuple[Request, Conduct]] = []
        deadline_s = self._population.deadline_s
        for request in requests:
            conduct = self._population.conduct(request.round, request.client, self._num_steps(request.client))
            if not conduct.answers:
                replies.append(_absence(request, Outcome.ABSENT, "dropped out"))
            elif deadline_s is not None and conduct.takes_s > deadline_s:
                late = f"would have taken {conduct.takes_s:.3g} s, the deadline is {deadline_s:g} s"
                replies.append(_absence(request, Outcome.LATE, late))
            else:
                coming.append((request, conduct))
        coming.sort(key=lambda one: (one[1].takes_s, one[1].place))
        wanted = self._population.cohort if self._population.over_selection > 1 else len(coming)
        usable, closed_s, told = 0, 0.0, 0

        def tell(before: int, count: int) -> None:
            nonlocal told
            if before + count > told:
                told = before + count
                self.on_clients(told)

        # Who fails is made up for by the next who is done.
        while coming and usable < wanted:
            first, coming = coming[: wanted - usable], coming[wanted - usable :]
            self._engine.on_clients = partial(tell, len(replies))
            came = self._engine.exchange([replace(request, effort=c.effort) for request, c in first])
            usable += sum(not reply.failure for reply in came)
            replies += came
            closed_s = first[-1][1].takes_s
        for request, conduct in coming:
            over = f"would have taken {conduct.takes_s:.3g} s, {usable} updates were there after {closed_s:.3g} s"
            replies.append(_absence(request, Outcome.LATE, over))
        tell(0, len(replies))
        return replies


def _absence(request: Request, outcome: Outcome, reason: str) -> Reply:
    return Reply(request.round, request.client, failure=reason, outcome=outcome)

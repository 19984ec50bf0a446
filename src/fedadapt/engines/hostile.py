"""An engine some of whose clients lie in what they send."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from fedadapt.algorithms import Algorithm
from fedadapt.engines.engine import Engine
from fedadapt.errors import FrameError
from fedadapt.federation.frame import Kind
from fedadapt.federation.messages import Reply, Request, Wire
from fedadapt.federation.serve import UPLOAD_SCALARS
from fedadapt.params import Streams


class HostileEngine:
    """Another engine, with the uploads of attackers changed on their way.

    The server gets well-formed frames, with the numbers of samples and steps of honest work: only the tensors lie. The
    exchange before the first round is honest.

    Args:
        engine: carries the messages.
        wire: what attackers read and write frames with, as every client does.
        algorithm: says what an upload holds.
        attackers: their numbers.
        upload: ``streams -> streams`` that they send.
    """

    def __init__(
        self,
        engine: Engine,
        wire: Wire,
        algorithm: Algorithm,
        attackers: Collection[int],
        upload: Callable[[Streams], Streams],
    ) -> None:
        self._engine, self._wire, self._algorithm = engine, wire, algorithm
        self._attackers, self._upload = attackers, upload

    @property
    def on_clients(self) -> Callable[[int], None]:
        """Told of progress, as that of the engine within."""
        return self._engine.on_clients

    @on_clients.setter
    def on_clients(self, told: Callable[[int], None]) -> None:
        self._engine.on_clients = told

    @property
    def cpu_s(self) -> float:
        """That of the engine within."""
        return self._engine.cpu_s

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies of the engine within, those of attackers changed."""
        return [self._changed(reply) for reply in self._engine.exchange(requests)]

    def _changed(self, reply: Reply) -> Reply:
        # What is asked before the first round is no update.
        if reply.round == 0 or reply.client not in self._attackers or reply.failure:
            return reply
        round_, client, uploads = reply.round, reply.client, self._algorithm.uploads
        scalars = len(UPLOAD_SCALARS) + len(self._algorithm.local.scalars)
        try:
            honest = self._wire.read(reply.frame, Kind.UPLOAD, round_, client, uploads, scalars)
            lie = self._upload(honest.streams)
            return Reply(round_, client, self._wire.write(Kind.UPLOAD, round_, client, lie, honest.scalars))
        except FrameError as error:
            return Reply(round_, client, failure=str(error))

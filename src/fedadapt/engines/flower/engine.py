"""The engine of a real federation: it finds the sites, shakes hands, carries a round's frames and waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedadapt.engines.flower.carry import (
    CHUNK,
    HELLO,
    ROUND,
    Answer,
    Ask,
    Greeting,
    Piece,
    frame_of,
    pack,
    text_of,
)
from fedadapt.engines.flower.mandate import Mandate
from fedadapt.errors import EngineError, FrameError
from fedadapt.federation.handshake import Fit, misfit, parse
from fedadapt.federation.messages import Reply, Request

PIECE_BYTES = 4 * 2**20
"""Bytes of the backbone in one message."""


@dataclass
class _Sent:
    """A message that is out: what it was, to whom, and when."""

    kind: str
    node: int
    at: float
    round: int = 0
    client: int = -1


@dataclass
class _Sites:
    """Who is there: nodes that said hello, those that may take part, and those that may not."""

    greeted: set[int] = field(default_factory=set)
    node_of: dict[int, int] = field(default_factory=dict)

    def client_at(self, node: int) -> int | None:
        return next((client for client, at in self.node_of.items() if at == node), None)

    def forget(self, node: int) -> None:
        self.greeted.discard(node)
        client = self.client_at(node)
        if client is not None:
            del self.node_of[client]


class FlowerEngine:
    """Carries frames between `play` and the sites.

    Args:
        grid: Flower's way to the nodes.
        mandate: the run.
        clock: seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        grid: Grid,
        mandate: Mandate,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.on_clients: Callable[[int], None] = lambda count: None
        self.cpu_s = 0.0
        self._grid = grid
        self._mandate = mandate
        self._clock = clock
        self._sleep = sleep
        self._sites = _Sites()
        self._out: dict[str, _Sent] = {}

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Brings each request to its site; returns when all have answered, or at quorum and deadline.

        Raises:
            EngineError: Flower does not answer.
        """
        asked = {request.client: request for request in requests}
        round_ = requests[0].round
        waiting, replies = set(asked), list[Reply]()
        usable, quorum_since = 0, None
        while waiting:
            try:
                self._meet()
                self._ask([asked[client] for client in sorted(waiting)])
                arrived = self._collect()
            except OSError as error:
                raise EngineError(f"Flower's SuperLink does not answer ({error}); start it again") from error
            for reply in arrived:
                replies.append(reply)
                if reply.round == round_ and reply.client in waiting:
                    waiting.discard(reply.client)
                    usable += not reply.failure
            self.on_clients(len(asked) - len(waiting))
            if quorum_since is None and len(self._sites.node_of) >= self._mandate.patience.quorum:
                quorum_since = self._clock()
            if self._overdue(quorum_since) and usable >= self._mandate.patience.quorum:
                break
            if waiting:
                self._sleep(self._mandate.patience.poll_s)
        return replies

    def _overdue(self, since: float | None) -> bool:
        limit = self._mandate.patience.deadline_s
        return limit is not None and since is not None and self._clock() - since > limit

    def _meet(self) -> None:
        """Says hello to nodes that are new and forgets those that are gone."""
        online = set(self._grid.get_node_ids())
        for node in self._sites.greeted - online:
            client = self._sites.client_at(node)
            self._sites.forget(node)
            if client is not None:
                self._mandate.say(f"client {client} is gone")
        for node in sorted(online - self._sites.greeted):
            if self._mandate.numbers and node not in self._mandate.numbers:
                self._sites.greeted.add(node)
                self._mandate.say(f"node {node} is none of the sites of this run; refused")
                continue
            self._greet(node)

    def _greet(self, node: int) -> None:
        self._sites.greeted.add(node)
        number = self._mandate.numbers.get(node, -1)
        greeting = Greeting(terms=self._mandate.terms.model_dump_json(), client=number)
        self._send(Message(pack(greeting), node, HELLO), _Sent(HELLO, node, self._clock(), client=number))

    def _ask(self, requests: Sequence[Request]) -> None:
        """Sends each request that is not out, or has been for long, to its site, if that is there."""
        now = self._clock()
        for request in requests:
            node = self._sites.node_of.get(request.client)
            if node is None or any(
                sent.kind == ROUND
                and sent.round == request.round
                and sent.node == node
                and now - sent.at < self._mandate.patience.ask_again_s
                for sent in self._out.values()
            ):
                continue
            ask = Ask(
                run=self._mandate.terms.run,
                round=request.round,
                client=request.client,
                accepted=self._mandate.accepted(request.client),
            )
            sent = _Sent(ROUND, node, now, request.round, request.client)
            self._send(Message(pack(ask, request.frame), node, ROUND), sent)

    def _send(self, message: Message, sent: _Sent) -> None:
        (key,) = self._grid.push_messages([message]) or (None,)
        if key is None:
            self._sites.forget(sent.node)
            return
        self._out[key] = sent

    def _collect(self) -> list[Reply]:
        """Takes in what has arrived; gives the answers to requests, of this round and of earlier ones."""
        if not self._out:
            return []
        replies = []
        for message in self._grid.pull_messages(list(self._out)):
            sent = self._out.pop(message.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            if message.has_error():
                # Flower lost the node or the app on it crashed; if it is still there it is greeted and asked anew.
                self._mandate.say(f"node {sent.node} did not answer {sent.kind}: {message.error.reason}")
                self._sites.forget(sent.node)
            elif sent.kind == ROUND:
                replies += self._hear_answer(message, sent)
            elif sent.kind == HELLO:
                self._hear_fit(message, sent)
            else:
                self._hear_piece(message, sent)
        return replies

    def _hear_answer(self, message: Message, sent: _Sent) -> list[Reply]:
        try:
            answer, frame = parse(Answer, text_of(message)), frame_of(message)
        except FrameError as error:
            return [Reply(sent.round, sent.client, failure=str(error))]
        if answer.stranger:
            self._sites.forget(sent.node)
            return []
        if (answer.round, answer.client) != (sent.round, sent.client):
            return [Reply(sent.round, sent.client, failure="answers another request than it was asked")]
        return [Reply(sent.round, sent.client, frame, "" if frame else answer.failure or "sent nothing")]

    def _hear_fit(self, message: Message, sent: _Sent) -> None:
        try:
            fit = parse(Fit, text_of(message))
        except FrameError as error:
            self._mandate.say(f"node {sent.node} is refused: {error}")
            return
        if fit.missing_from is not None and not fit.problem:
            self._send_piece(sent.node, fit.missing_from)
            return
        problem = misfit(self._mandate.terms, fit) or self._number_problem(fit.client, sent)
        if problem:
            self._mandate.say(f"node {sent.node} is refused: {problem}")
            return
        held = self._sites.node_of.get(fit.client)
        self._sites.node_of[fit.client] = sent.node
        again = "" if held is None else ", in place of another node"
        self._mandate.say(f"client {fit.client} is here with {fit.num_examples} samples{again}")

    def _number_problem(self, client: int, sent: _Sent) -> str:
        if self._mandate.numbers and client != sent.client:
            return f"it calls itself client {client}, but is client {sent.client}"
        if not 0 <= client < self._mandate.num_clients:
            return f"client number {client} is not from 0 to {self._mandate.num_clients - 1}; set client in its site file"
        return ""

    def _send_piece(self, node: int, offset: int) -> None:
        total = self._mandate.terms.backbone_bytes
        if offset >= total:
            self._mandate.say(
                f"node {node} is refused: it asks for byte {offset} of a backbone of {total} bytes"
            )
            return
        piece = Piece(backbone=self._mandate.terms.backbone, offset=offset, total=total)
        data = self._mandate.backbone(offset, min(PIECE_BYTES, total - offset))
        self._send(Message(pack(piece, data), node, CHUNK), _Sent(CHUNK, node, self._clock()))

    def _hear_piece(self, message: Message, sent: _Sent) -> None:
        try:
            piece = parse(Piece, text_of(message))
        except FrameError as error:
            self._mandate.say(f"node {sent.node} is refused: {error}")
            return
        if piece.problem:
            self._mandate.say(f"node {sent.node} is refused: {piece.problem}")
        elif piece.offset < self._mandate.terms.backbone_bytes:
            self._send_piece(sent.node, piece.offset)
        else:
            self._greet(sent.node)

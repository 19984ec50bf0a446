"""The engine of a real federation: it finds the sites, shakes hands, carries a round's frames and waits."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from fedadapt.engines.flower.carry import (
    CHUNK,
    HELLO,
    MEASURE,
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
from fedadapt.engines.flower.pull import PATIENCE_S, Pull
from fedadapt.engines.flower.waiting import LONGEST_PAUSE_S, OpenRound, Sent, Sites
from fedadapt.errors import EngineError, FrameError, one_line
from fedadapt.federation.handshake import Fit, misfit, parse
from fedadapt.federation.messages import Reply, Request

PIECE_BYTES = 4 * 2**20
"""Bytes of the backbone in one message."""

LATE_ROUNDS = 10
"""For so long a late answer is looked for, so that its bytes are counted."""

FIRST_WORD_S = 60.0
"""After which the log says whom a round waits for; then after twice as long, and so on."""

SLOW_LINE = 2**18
"""Bytes a second of a line on which a message is not yet taken for lost, there and back."""


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
        self._sites = Sites()
        self._out: dict[str, Sent] = {}
        self._downloads: Counter[int] = Counter()
        self._wholes: Counter[int] = Counter()

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Brings each request to its site; returns with a quorum, when all have answered or at the deadline.

        A site that failed has answered; but where a quorum is wanting those that failed are asked again, after a
        pause, so that what ails them all does not use up the rounds. Of those who did not answer there is a reply
        too: it says how often they were asked. Where they are to measure, those who are not there are not waited for.

        Raises:
            EngineError: Flower does not answer.
        """
        if not requests:
            return []
        asked = {request.client: request for request in requests}
        round_, measure = requests[0].round, requests[0].measure
        quorum = 0 if measure else min(self._mandate.patience.quorum, len(requests))
        open_, quorum_since = OpenRound(round_, measure, set(asked)), None
        self._downloads.clear()
        self._wholes.clear()
        word_after, began, were_here = FIRST_WORD_S, self._clock(), set(self._sites.node_of)
        self._out = {k: s for k, s in self._out.items() if not s.asks or s.round > round_ - LATE_ROUNDS}
        while True:
            try:
                self._meet()
                self._ask([asked[client] for client in sorted(open_.silent)], open_.afresh)
                open_.take(self._collect())
            except OSError as error:
                raise EngineError(f"Flower's SuperLink does not answer ({error}); start it again") from error
            self.on_clients(len(asked) - len(open_.silent))
            if quorum_since is None and len(self._sites.node_of) >= quorum:
                quorum_since = self._clock()
            present = set(self._sites.node_of)
            if measure and self._clock() - began < self._mandate.patience.ask_again_s:
                # Who was lost a moment ago may be back in a moment.
                present |= were_here
            if open_.usable >= quorum and (open_.complete(present) or self._overdue(quorum_since)):
                return [
                    replace(reply, downloads=self._downloads[reply.client], wholes=self._wholes[reply.client])
                    for reply in open_.close()
                ]
            if self._clock() - began >= word_after:
                self._mandate.say(open_.missing(present))
                word_after *= 2
            if open_.usable < quorum and open_.try_again(self._clock(), present):
                self._mandate.say(
                    f"round {round_}: {open_.usable} of {quorum} updates; asking those that failed again"
                )
            self._sleep(self._mandate.patience.poll_s)

    def _overdue(self, since: float | None) -> bool:
        limit = self._mandate.patience.deadline_s
        return limit is not None and since is not None and self._clock() - since > limit

    def _meet(self) -> None:
        """Says hello to nodes that are new and forgets those that are gone."""
        online = set(self._grid.get_node_ids())
        for node in self._sites.greeted - online:
            client = self._sites.client_at(node)
            self._forget(node)
            self._sites.due.pop(node, None)
            if client is not None:
                self._mandate.say(f"client {client} is gone")
        now = self._clock()
        for key, sent in list(self._out.items()):
            if not sent.asks and sent.until <= now and sent.node in online:
                # It was restarted, or its app was, with our word in its hands.
                del self._out[key]
                self._greet(sent.node, sent.times + 1)
        for node in sorted(online - self._sites.greeted):
            if self._sites.due.get(node, now) > now:
                continue
            if self._mandate.numbers and node not in self._mandate.numbers:
                self._sites.greeted.add(node)
                self._mandate.say(f"node {node} is none of the sites of this run; refused")
                continue
            self._greet(node)

    def _greet(self, node: int, times: int = 1) -> None:
        self._sites.greeted.add(node)
        number = self._mandate.numbers.get(node, -1)
        greeting = Greeting(terms=self._mandate.terms.model_dump_json(), client=number)
        sent = Sent(HELLO, node, self._patience(times), client=number, times=times)
        self._send(Message(pack(greeting.model_dump_json()), node, HELLO), sent)

    def _patience(self, times: int, num_bytes: int = 0) -> float:
        """Until when an answer to the n-th repetition is expected: twice as long each time, longer for more bytes.

        A site that is still at work gets every repetition too, and answers each.
        """
        once = self._mandate.patience.ask_again_s + 2 * num_bytes / SLOW_LINE
        return self._clock() + once * 2 ** (times - 1)

    def _forget(self, node: int) -> None:
        """Lets a node be greeted anew, and asked again for what it was asked."""
        self._sites.forget(node)
        for key, sent in list(self._out.items()):
            if sent.node == node and sent.asks:
                sent.until, sent.times = -math.inf, 0
            elif sent.node == node:
                del self._out[key]

    def _ask(self, requests: Sequence[Request], afresh: Container[int]) -> None:
        """Sends each request that is not out, or has been for long, to its site, if that is there.

        To those who are to start afresh, with all that it takes.
        """
        now = self._clock()
        for request in requests:
            node = self._sites.node_of.get(request.client)
            if node is None:
                continue
            kind = MEASURE if request.measure else ROUND
            sent_before = [
                s for s in self._out.values() if (s.kind, s.round, s.node) == (kind, request.round, node)
            ]
            if any(now < sent.until for sent in sent_before):
                continue
            times = 1 + max((sent.times for sent in sent_before), default=0)
            accepted = request.accepted
            ask = Ask(
                run=self._mandate.terms.run,
                round=request.round,
                client=request.client,
                accepted=self._mandate.accepted(request.client) if accepted is None else accepted,
            )
            whole = request.whole() if request.whole and request.client in afresh else b""
            frame = whole or request.frame
            until = self._patience(times, len(frame))
            sent = Sent(kind, node, until, request.round, request.client, times)
            if self._send(Message(pack(ask.model_dump_json(), frame), node, kind), sent):
                self._downloads[request.client] += 1
                self._wholes[request.client] += bool(whole)

    def _send(self, message: Message, sent: Sent) -> bool:
        (key,) = self._grid.push_messages([message]) or (None,)
        if key is None:
            self._forget(sent.node)
            return False
        self._out[key] = sent
        return True

    def _collect(self) -> list[Reply]:
        """Takes in what has arrived; gives the answers to requests, of this round and of earlier ones."""
        replies = []
        for message in self._pull():
            sent = self._out.pop(message.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            if message.has_error():
                self._hear_failure(sent, message.error.reason or "no reason given")
            elif sent.asks:
                replies += self._hear_answer(message, sent)
            elif sent.kind == HELLO:
                self._hear_fit(message, sent)
            else:
                self._hear_piece(message, sent)
        return replies

    def _pull(self) -> list[Message]:
        """What has arrived, one by one: a message that Flower cannot put together, or half of one, costs its sender alone.

        Flower gives out what it has once; of a batch with such a message the others would be lost as well.
        """
        found, until = list[Message](), time.monotonic() + PATIENCE_S
        for key, sent in list(self._out.items()):
            patience = 0.0 if sent.pull else until - time.monotonic()
            sent.pull = sent.pull or Pull(self._grid, key)
            if not sent.pull.ends(patience):
                continue
            over, sent.pull = sent.pull, None
            try:
                found += over.result()
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a site can make Flower stumble over
                self._out.pop(key, None)
                self._hear_failure(sent, f"its message cannot be read: {error}")
        return found

    def _hear_failure(self, sent: Sent, reason: str) -> None:
        """Flower lost the node or the app on it crashed; if it is still there it is greeted anew, after a pause."""
        self._mandate.say(f"node {sent.node} did not answer {sent.kind}: {one_line(reason[:500])}")
        failures = self._sites.failures[sent.node] = self._sites.failures.get(sent.node, -1) + 1
        self._sites.due[sent.node] = self._clock() + min(2.0 ** min(failures, 6), LONGEST_PAUSE_S)
        self._forget(sent.node)

    def _hear_answer(self, message: Message, sent: Sent) -> list[Reply]:
        # Not at its greeting: an app that answers greetings may fail at every round.
        self._sites.failures.pop(sent.node, None)
        frame, failure = b"", ""
        try:
            answer, frame = parse(Answer, text_of(message)), frame_of(message)
        except FrameError as error:
            failure = str(error)
        else:
            if answer.stranger:
                self._forget(sent.node)
                return []
            failure = "" if frame else answer.failure or "sent nothing"
            if (answer.round, answer.client) != (sent.round, sent.client):
                frame, failure = b"", "answers another request than it was asked"
        return [Reply(sent.round, sent.client, frame, failure, measure=sent.kind == MEASURE)]

    def _hear_fit(self, message: Message, sent: Sent) -> None:
        try:
            fit = parse(Fit, text_of(message))
        except FrameError as error:
            self._refuse(sent.node, str(error))
            return
        if fit.missing_from is not None and not fit.problem:
            self._send_piece(sent.node, fit.missing_from)
            return
        problem = misfit(self._mandate.terms, fit) or self._number_problem(fit.client, sent)
        if problem:
            self._refuse(sent.node, problem)
            return
        held = self._sites.node_of.get(fit.client)
        self._sites.node_of[fit.client] = sent.node
        self._sites.refused.pop(sent.node, None)
        again = "" if held in (None, sent.node) else ", in place of another node"
        self._mandate.say(f"client {fit.client} is here with {fit.num_examples} samples{again}")

    def _refuse(self, node: int, problem: str) -> None:
        """Lets a node take no part; it is greeted anew now and then, in case it was mended and not seen to go."""
        if self._sites.refused.get(node) != problem:
            number = self._mandate.numbers.get(node)
            who = f"node {node}" if number is None else f"client {number} (node {node})"
            self._mandate.say(f"{who} is refused: {problem}")
        self._sites.refused[node] = problem
        self._sites.due[node] = self._clock() + LONGEST_PAUSE_S
        self._forget(node)

    def _number_problem(self, client: int, sent: Sent) -> str:
        if self._mandate.numbers and client != sent.client:
            return f"it calls itself client {client}, but is client {sent.client}"
        if not 0 <= client < self._mandate.num_clients:
            return f"client number {client} is not from 0 to {self._mandate.num_clients - 1}; set client in its site file"
        return ""

    def _send_piece(self, node: int, offset: int) -> None:
        total = self._mandate.terms.backbone_bytes
        if offset >= total:
            self._refuse(node, f"it asks for byte {offset} of a backbone of {total} bytes")
            return
        piece = Piece(backbone=self._mandate.terms.backbone, offset=offset, total=total)
        data = self._mandate.backbone(offset, min(PIECE_BYTES, total - offset))
        self._send(
            Message(pack(piece.model_dump_json(), data), node, CHUNK),
            Sent(CHUNK, node, self._patience(1, len(data))),
        )

    def _hear_piece(self, message: Message, sent: Sent) -> None:
        try:
            piece = parse(Piece, text_of(message))
        except FrameError as error:
            self._refuse(sent.node, str(error))
            return
        if piece.problem:
            self._refuse(sent.node, piece.problem)
        elif piece.offset < self._mandate.terms.backbone_bytes:
            self._send_piece(sent.node, piece.offset)
        else:
            self._greet(sent.node)

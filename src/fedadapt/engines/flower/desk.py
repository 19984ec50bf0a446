"""The desk of a site: what comes in is checked and brought to the site, and what it says goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fedadapt.engines.flower.carry import CHUNK, HELLO, MEASURE, ROUND, Answer, Ask, Greeting, Piece, refusal
from fedadapt.engines.flower.pipe import Parcel
from fedadapt.errors import FedadaptError, FrameError, one_line
from fedadapt.federation.handshake import Document, Fit, Terms, parse
from fedadapt.federation.messages import Reply, Request


class Site(Protocol):
    """What a party does when it is spoken to."""

    def greet(self, terms: Terms, client: int) -> Fit:
        """Looks whether it fits the terms; `client` is the number it is given, -1 for its own."""
        ...

    def take(self, backbone: str, offset: int, total: int, data: bytes) -> int:
        """Puts a piece of the backbone's weight file away; returns from where to go on."""
        ...

    def answer(self, run: str, request: Request, accepted: int) -> Reply | None:
        """Trains, or measures, as it is asked; None if it has not shaken hands on this run."""
        ...


class SiteDesk:
    """Answers messages in a site's name. What the site cannot do is an answer too, not an error.

    Args:
        site: who answers.
        say: told in one line what was asked and how it went.
    """

    def __init__(self, site: Site, say: Callable[[str], None] = lambda line: None) -> None:
        self._site = site
        self._say = say

    def __call__(self, parcel: Parcel) -> Parcel:
        """The answer to one message.

        Raises:
            FrameError: it is none of ours.
        """
        answers = {HELLO: self._greet, CHUNK: self._take, ROUND: self._answer, MEASURE: self._answer}
        handle = answers.get(parcel.kind)
        if handle is None:
            raise FrameError(f"message of kind {parcel.kind!r} is none of ours")
        try:
            said, frame = handle(parcel)
        except (FedadaptError, OSError, MemoryError) as error:
            self._say(f"cannot answer {parcel.kind}: {one_line(error)}")
            return refusal(parcel, error)
        return Parcel(parcel.kind, said.model_dump_json(), frame)

    def _greet(self, parcel: Parcel) -> tuple[Document, bytes]:
        greeting = parse(Greeting, parcel.text)
        fit = self._site.greet(parse(Terms, greeting.terms), greeting.client)
        if fit.problem:
            self._say(f"does not fit the federation: {fit.problem}")
        elif fit.missing_from is not None:
            self._say(f"fetches the backbone, from byte {fit.missing_from:,} on")
        else:
            self._say(f"takes part as client {fit.client} with {fit.num_examples} samples")
        return fit, b""

    def _take(self, parcel: Parcel) -> tuple[Document, bytes]:
        piece = parse(Piece, parcel.text)
        offset = self._site.take(piece.backbone, piece.offset, piece.total, parcel.frame)
        return piece.model_copy(update={"offset": offset}), b""

    def _answer(self, parcel: Parcel) -> tuple[Document, bytes]:
        ask = parse(Ask, parcel.text)
        said = Answer(round=ask.round, client=ask.client)
        request = Request(ask.round, ask.client, parcel.frame, measure=parcel.kind == MEASURE)
        asked = f"measure round {ask.round - 1}" if request.measure else f"round {ask.round}"
        reply = self._site.answer(ask.run, request, ask.accepted)
        if reply is None:
            self._say(f"{asked}: asked before it shook hands; greeted anew")
            return said.model_copy(update={"stranger": True}), b""
        self._say(f"{asked}: {one_line(reply.failure) or f'answers with {len(reply.frame):,} bytes'}")
        return said.model_copy(update={"failure": reply.failure[:500]}), reply.frame

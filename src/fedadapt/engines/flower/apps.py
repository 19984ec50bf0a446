"""Flower's two apps around ours: they carry, and know nothing of what is carried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedadapt.engines.flower import require_flower
from fedadapt.engines.flower.carry import Answer, Ask, Greeting, Piece, frame_of, pack, text_of
from fedadapt.engines.flower.engine import FlowerEngine
from fedadapt.engines.flower.mandate import Mandate
from fedadapt.engines.flower.processes import FAILURE, HOME
from fedadapt.errors import EngineError, FedadaptError
from fedadapt.federation.handshake import Fit, Terms, parse
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
        """Does its part in a round; None if it has not shaken hands on this run."""
        ...


class LeadRun(Protocol):
    """Plays the rounds that a run still lacks, over the engine that `connect` makes."""

    def __call__(self, run: Path, connect: Callable[[Mandate], FlowerEngine]) -> None: ...


def make_server_app(lead: LeadRun) -> ServerApp:
    """The app of a server. The run's directory is in Flower's run configuration, under ``run``."""
    require_flower()
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run = Path(str(context.run_config["run"]))
        try:
            lead(run, lambda mandate: FlowerEngine(grid, mandate))
        except EngineError:
            raise
        except FedadaptError as error:
            # Whoever watches this run would start it again; this says that it would be no use.
            (run / HOME / FAILURE).write_text(str(error), encoding="utf-8")
            raise

    return app


def make_client_app(open_site: Callable[[Mapping[str, Path]], Site]) -> ClientApp:
    """The app of a site, which `open_site` makes from the paths in Flower's node configuration.

    Every message finds the site anew, since Flower gives each a process of its own.
    """
    require_flower()
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        client = -1
        try:
            greeting = parse(Greeting, text_of(message))
            client = greeting.client
            fit = open_site(_paths(context)).greet(parse(Terms, greeting.terms), client)
        except (FedadaptError, OSError) as error:
            fit = Fit(client=client, problem=_line(error))
        return Message(pack(fit), reply_to=message)

    @app.query("backbone")
    def backbone(message: Message, context: Context) -> Message:
        piece = parse(Piece, text_of(message))
        try:
            offset = open_site(_paths(context)).take(
                piece.backbone, piece.offset, piece.total, frame_of(message)
            )
            piece = piece.model_copy(update={"offset": offset})
        except (FedadaptError, OSError) as error:
            piece = piece.model_copy(update={"problem": _line(error)})
        return Message(pack(piece), reply_to=message)

    @app.train("round")
    def round_(message: Message, context: Context) -> Message:
        ask = parse(Ask, text_of(message))
        said = Answer(round=ask.round, client=ask.client)
        try:
            request = Request(ask.round, ask.client, frame_of(message))
            reply = open_site(_paths(context)).answer(ask.run, request, ask.accepted)
        except (FedadaptError, OSError) as error:
            return Message(pack(said.model_copy(update={"failure": _line(error)})), reply_to=message)
        if reply is None:
            return Message(pack(said.model_copy(update={"stranger": True})), reply_to=message)
        said = said.model_copy(update={"failure": reply.failure[:500]})
        return Message(pack(said, reply.frame or None), reply_to=message)

    return app


def _paths(context: Context) -> dict[str, Path]:
    return {
        name: Path(str(context.node_config[name]))
        for name in ("site", "recipe")
        if name in context.node_config
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]

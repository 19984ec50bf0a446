"""Flower's app on a site: it carries a message to whoever answers for the site, and the answer back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedadapt.engines.flower import pipe, require_flower
from fedadapt.engines.flower.carry import frame_of, pack, refusal, text_of
from fedadapt.engines.flower.pipe import Desk, Parcel
from fedadapt.errors import EngineError, FrameError

NAMES = ("site", "recipe", "worker")
"""The paths that a node may be told."""

FindDesk = Callable[[Mapping[str, Path]], Desk]
"""From the paths in Flower's node configuration to whoever answers."""

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
"""What Flower calls a mod: it sees a message on its way in, calls the next, and sees the answer on its way out."""


def make_client_app(find_desk: FindDesk, mods: Sequence[Mod] = ()) -> ClientApp:
    """The app of a site.

    Flower gives every message a process of its own, so this module loads nothing heavy.

    Args:
        find_desk: finds who answers.
        mods: Flower's mods around every message, the outermost first. What they find in it is one packed frame, or no
            array at all in a handshake: mods that count or log work, and those that change arrays do not.
    """
    require_flower()
    app = ClientApp(mods=list(mods))

    def carry(message: Message, context: Context) -> Message:
        parcel = Parcel(message.metadata.message_type, text_of(message), frame_of(message))
        paths = {name: Path(str(value)) for name, value in context.node_config.items() if name in NAMES}
        try:
            answer = find_desk(paths)(parcel)
        except (EngineError, FrameError) as error:
            answer = refusal(parcel, error)
        return Message(pack(answer.text, answer.frame or None), reply_to=message)

    for kind in (app.query("hello"), app.query("backbone"), app.train("round"), app.evaluate("round")):
        kind(carry)
    return app


def nearest_desk(otherwise: str) -> FindDesk:
    """Finds the site's worker; where ``fedadapt join`` keeps none, every message makes its own desk.

    Args:
        otherwise: ``module:function`` that makes a desk from the paths; loaded only if it is needed.
    """

    def find(paths: Mapping[str, Path]) -> Desk:
        if "worker" in paths:
            return partial(pipe.ask, paths["worker"])
        module, _, function = otherwise.partition(":")
        make: FindDesk = getattr(import_module(module), function)
        return make(paths)

    return find

"""How what parties say travels in Flower's messages: one JSON text, and at most one array that is a frame."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from pydantic import Field

from fedadapt.engines.flower.pipe import Parcel
from fedadapt.errors import FrameError, one_line
from fedadapt.federation.handshake import Complaint, Digest, Document, Fit, parse

HELLO, CHUNK, ROUND, MEASURE = (
    f"{MessageType.QUERY}.hello",
    f"{MessageType.QUERY}.backbone",
    f"{MessageType.TRAIN}.round",
    f"{MessageType.EVALUATE}.round",
)
"""The types of message: the handshake, a piece of the backbone, a round's request to train and that to measure."""

REQUESTS = (ROUND, MEASURE)
"""Those that hold the frame of a request."""

_FRAME, _ABOUT = "frame", "about"
_STYPE = "fedadapt.frame"


class Greeting(Document):
    """The server says hello: the terms as JSON, and the number it gives the party (-1: the party's own)."""

    terms: str
    client: int = Field(ge=-1)


class Piece(Document):
    """A piece of the backbone's weight file is in the frame; in the answer, from where to go on."""

    backbone: Digest
    offset: int = Field(ge=0)
    total: int = Field(ge=0)
    problem: Complaint = ""


class Ask(Document):
    """A round's request is in the frame.

    Args:
        run: which run.
        round: counted from 1; 0 for the exchange before the first.
        client: who is asked.
        accepted: the last round whose update of this client counted; 0 if none did.
    """

    run: Digest
    round: int = Field(ge=0)
    client: int = Field(ge=0)
    accepted: int = Field(ge=0)


class Answer(Document):
    """A request's answer: the upload, or what was measured, is in the frame; or it failed.

    Args:
        round: as asked.
        client: who answers.
        failure: why there is no upload.
        stranger: the party has not shaken hands on this run, or forgot it.
    """

    round: int = Field(ge=0)
    client: int = Field(ge=0)
    failure: Complaint = ""
    stranger: bool = False


def refusal(parcel: Parcel, error: Exception) -> Parcel:
    """The answer of a party that cannot do what a message asks.

    Raises:
        FrameError: the message is none of ours.
    """
    problem = one_line(error)[:500]
    said: Document
    if parcel.kind == HELLO:
        said = Fit(client=parse(Greeting, parcel.text).client, problem=problem)
    elif parcel.kind == CHUNK:
        said = parse(Piece, parcel.text).model_copy(update={"problem": problem})
    else:
        ask = parse(Ask, parcel.text)
        said = Answer(round=ask.round, client=ask.client, failure=problem or "failed without a word")
    return Parcel(parcel.kind, said.model_dump_json())


def pack(text: str, frame: bytes | None = None) -> RecordDict:
    """The content of a message."""
    content = RecordDict({_ABOUT: ConfigRecord({"json": text})})
    if frame is not None:
        content[_FRAME] = ArrayRecord({_FRAME: Array("uint8", (len(frame),), _STYPE, frame)})
    return content


def text_of(message: Message) -> str:
    """The JSON text of a message that arrived, unchecked; empty if it has none."""
    records = message.content.config_records
    text = records[_ABOUT].get("json") if _ABOUT in records else None
    return text if isinstance(text, str) else ""


def frame_of(message: Message) -> bytes:
    """The frame of a message that arrived; empty if it has none.

    Raises:
        FrameError: it holds other arrays than a frame.
    """
    records = message.content.array_records
    if not records:
        return b""
    if set(records) != {_FRAME} or set(records[_FRAME]) != {_FRAME}:
        raise FrameError("message holds other arrays than one frame")
    array = records[_FRAME][_FRAME]
    if array.stype != _STYPE or array.dtype != "uint8":
        # What it calls itself is the sender's.
        raise FrameError(f"message holds an array of {array.stype[:40]!r} {array.dtype[:40]!r}, not a frame")
    return array.data

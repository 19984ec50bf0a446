"""An app of a site that answers a round's request with messages of Flower's that are none of ours."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedadapt.engines.flower import client_app
from fedadapt.engines.flower.carry import Answer, pack

FRAME = Array("uint8", (1,), "fedadapt.frame", b"x")
PICKLED = Array("object", (1,), "numpy.ndarray", pickle.dumps(os.getpid))
"""Numpy would have to unpickle it to read it."""


def _text(number: int) -> str:
    return Answer(round=number, client=2).model_dump_json()


def _with(**arrays: Array) -> RecordDict:
    content = pack(_text(1))
    content["frame"] = ArrayRecord(arrays)
    return content


CONTENTS = (
    ("Answer is malformed at its root", lambda number: RecordDict()),
    ("Answer is malformed at its root", lambda number: RecordDict({"about": ConfigRecord({"json": 7})})),
    ("Answer is malformed at its root", lambda number: RecordDict({"about": ConfigRecord({"json": "[]"})})),
    ("Answer is malformed at its root", lambda number: RecordDict({"about": MetricRecord({"json": 0.5})})),
    ("array of 'numpy.ndarray' 'float32'", lambda number: _with(frame=Array(np.ones(3, np.float32)))),
    ("array of 'numpy.ndarray' 'object'", lambda number: _with(frame=PICKLED)),
    ("other arrays than one frame", lambda number: _with(frame=FRAME, bias=FRAME)),
    ("other arrays than one frame", lambda number: _with(bias=FRAME)),
    ("is longer than the", lambda number: pack(_text(number), b"\xff" * 3 * 2**23)),
)
"""What a message holds, after what the record of its round says; one a round, from the second on."""

LAST = len(CONTENTS) + 1
"""The round of the last of them; in those after it the app answers with an error, dies of one, and ends at once."""


def twist(message: Message, context: Context, call_next: client_app.Mod) -> Message:
    """A mod that answers instead of the site."""
    if message.metadata.message_type != "train.round":
        return call_next(message, context)
    number = json.loads(message.content["about"]["json"])["round"]
    if number == 1:
        return call_next(message, context)
    if number <= LAST:
        return Message(CONTENTS[number - 2][1](number), reply_to=message)
    if number == LAST + 1:
        return Message(Error(code=99, reason="\x1b[31mno\nreason" * 1000), reply_to=message)
    if number == LAST + 2:
        raise KeyError(b"\xff")
    os._exit(0)


def install() -> None:
    """Has every app of a site that is made from now on answer so."""
    make = client_app.make_client_app
    client_app.make_client_app = lambda find_desk: make(find_desk, mods=[twist])

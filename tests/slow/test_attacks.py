"""Sites with a good key that lie, and ways to them that break: what they send is refused, and the rest goes on."""

from __future__ import annotations

import struct
import threading
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from chaos import recipe, replay
from cutting import Cutter
from nodes import Federation

from fedadapt.engines.flower import pipe
from fedadapt.engines.flower.carry import ROUND, Answer, Ask
from fedadapt.engines.flower.node import Way, node_command
from fedadapt.engines.flower.processes import Child
from fedadapt.experiment.config import make_config
from fedadapt.experiment.worker import open_desk
from fedadapt.federation.frame import MAGIC, Frame, unpack
from fedadapt.params import to_bytes
from fedadapt.runs.records import Outcome
from fedadapt.runs.store import RunStore

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.timeout(3600)]


class Liar:
    """Sits where a site's worker sits: asks an honest desk, and from the second round on twists what that says."""

    def __init__(self, site: Path) -> None:
        self._desk = open_desk({"site": site})
        self.first = b""

    def __call__(self, parcel: pipe.Parcel) -> pipe.Parcel:
        answer = self._desk(parcel)
        if parcel.kind != ROUND or not answer.frame:
            return answer
        number = Ask.model_validate_json(parcel.text).round
        self.first = self.first or answer.frame
        lie = list(LIES.values())[number - 2] if number > 1 else None
        return answer if lie is None else lie(self, answer)


def _with_values(answer: pipe.Parcel, value: float) -> pipe.Parcel:
    frame = unpack(answer.frame, max_bytes=len(answer.frame))
    sections = tuple(struct.pack("<f", value) * (len(section) // 4) for section in frame.sections)
    return replace(answer, frame=replace(frame, sections=sections).pack())


def _as_client(answer: pipe.Parcel, client: int) -> pipe.Parcel:
    frame: Frame = unpack(answer.frame, max_bytes=len(answer.frame))
    return replace(answer, frame=replace(frame, client=client).pack())


def _claiming(answer: pipe.Parcel) -> pipe.Parcel:
    head = bytearray(answer.frame[:64] + struct.pack("<Q", 2**32) + bytes(24))
    head[6:10] = struct.pack("<HH", 0, 1)
    return replace(answer, frame=bytes(head) + struct.pack("<I", zlib.crc32(head)))


LIES = {
    "infinite or NaN": lambda liar, answer: _with_values(answer, float("nan")),
    "claims 4294967296 bytes of tensors": lambda liar, answer: _claiming(answer),
    "in round 1, expected": lambda liar, answer: replace(answer, frame=liar.first),
    "upload of client 0": lambda liar, answer: _as_client(answer, 0),
    "checksum does not match": lambda liar, answer: replace(answer, frame=answer.frame[:-1] + b"\0"),
    "federation.norm_bound": lambda liar, answer: _with_values(answer, 1e6),
    "it is not from fedadapt": lambda liar, answer: replace(answer, frame=b"\xff" * 2**10),
    "answers another request": lambda liar, answer: replace(
        answer, text=Answer(round=1, client=2).model_dump_json()
    ),
    "Answer is malformed": lambda liar, answer: replace(answer, text="{" + MAGIC.decode()),
}
"""What the record of a round says, by the lie that was told in it."""


def test_a_liar_is_refused_in_every_round(tmp_path):
    """Each lie is recorded for what it is, and the result is that of the honest sites alone, bit for bit."""
    rounds = len(LIES) + 1
    with Federation(tmp_path, recipe(rounds, 600) + "norm_bound = 1000.0\n") as federation:
        federation.serve()
        federation.join(0)
        federation.join(1)
        place = tmp_path / "site2"
        with pipe.listen(place / "socket") as listener, suppress(OSError):
            liar = Liar(place / "site.toml")
            threading.Thread(target=_attend, args=(listener, liar), daemon=True).start()
            way = Way(f"127.0.0.1:{federation.port}", tmp_path / "tls" / "ca.pem", place / "key")
            node = Child(node_command(way, place / "socket"), place, place / "supernode.log")
            node.start()
            try:
                assert federation.finish(3000) == 0, federation.said("server")
            finally:
                node.stop()
    with RunStore.read(federation.run) as store:
        records, state = store.clients(), store.state()
        config = make_config(store.manifest["config"])
    reasons = {record.round: record.reason for record in records if record.client == 2}
    assert reasons[1] == ""
    for number, why in enumerate(LIES, start=2):
        assert why in reasons[number], (number, reasons[number])
    counted = {(r.round, r.client) for r in records if r.outcome is Outcome.ACCEPTED}
    assert counted == {(r, c) for r in range(1, rounds + 1) for c in range(3)} - {
        (r, 2) for r in range(2, rounds + 1)
    }
    assert to_bytes(replay(config, counted)[0]) == to_bytes(state)


def _attend(listener, desk):
    with suppress(OSError):
        pipe.attend(listener, desk)


def test_a_site_cut_off_in_the_middle_of_an_upload(tmp_path):
    """Its connection ends twice with half an update sent, then for a while altogether; nothing is counted twice."""
    with (
        Federation(tmp_path, recipe(4, 600)) as federation,
        Cutter(federation.port) as way,
    ):
        federation.serve()
        federation.join(0)
        federation.join(1)
        federation.join(2, *federation.credentials(2), port=way.port)
        federation.wait_until_said("server", "round 1 of 4", 900)
        way.cut_uploads(2)
        federation.wait_until_said("server", "round 2 of 4", 900)
        assert way.cuts_left == 0
        way.close_for(20.0)
        assert federation.finish(3000) == 0, federation.said("server")
    with RunStore.read(federation.run) as store:
        records, state = store.clients(), store.state()
        config = make_config(store.manifest["config"])
    assert {record.outcome for record in records} == {Outcome.ACCEPTED}
    counted = {(record.round, record.client) for record in records}
    assert to_bytes(replay(config, counted)[0]) == to_bytes(state)

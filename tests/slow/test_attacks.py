"""Sites with a good key that lie, and ways to them that break: what they send is refused, and the rest goes on."""

from __future__ import annotations

import os
import re
import ssl
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from chaos import hold_against_replay, recipe
from cutting import Cutter
from foreign import CONTENTS, LAST
from nodes import Federation
from noise import Noise, Twister

import fedadapt
from fedadapt.engines.flower import pipe
from fedadapt.engines.flower.carry import ROUND, Answer, Ask
from fedadapt.engines.flower.gate import Gate, GateServer
from fedadapt.engines.flower.node import Way, node_command
from fedadapt.engines.flower.processes import Child, free_port
from fedadapt.experiment.worker import open_desk
from fedadapt.federation.frame import MAGIC, Frame, unpack
from fedadapt.runs.records import Outcome

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
        with _bare_node(federation, Liar(tmp_path / "site2" / "site.toml")):
            assert federation.finish(3000) == 0, federation.said("server")
    _, records, _ = hold_against_replay(federation.run)
    reasons = {record.round: record.reason for record in records if record.client == 2}
    assert reasons[1] == ""
    for number, why in enumerate(LIES, start=2):
        assert why in reasons[number], (number, reasons[number])
    counted = {(r.round, r.client) for r in records if r.outcome is Outcome.ACCEPTED}
    assert counted == {(r, c) for r in range(1, rounds + 1) for c in range(3)} - {
        (r, 2) for r in range(2, rounds + 1)
    }


@contextmanager
def _bare_node(federation: Federation, desk: pipe.Desk) -> Iterator[None]:
    """Flower's SuperNode of site 2, and somebody where the site's worker sits."""
    place = federation.folder / "site2"
    way = Way(f"127.0.0.1:{federation.port}", federation.folder / "tls" / "ca.pem", place / "key")
    node = Child(node_command(way, place / "socket"), place, place / "supernode.log")
    with pipe.listen(place / "socket") as listener:
        threading.Thread(target=_attend, args=(listener, desk), daemon=True).start()
        node.start()
        try:
            yield
        finally:
            node.stop()


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
    _, records, _ = hold_against_replay(federation.run)
    assert {record.outcome for record in records} == {Outcome.ACCEPTED}


def test_messages_that_are_not_ours(tmp_path, monkeypatch):
    """A site's app answers with other messages of Flower's, and dies: each round says so and counts the other two."""
    home = tmp_path / "foreign"
    home.mkdir()
    (home / "sitecustomize.py").write_text(
        "import sys\nif any('clientapp' in part for part in sys.orig_argv):\n"
        "    import foreign\n    foreign.install()\n"
    )
    rounds = LAST + 3
    with Federation(tmp_path, recipe(rounds, 45).replace("quorum = 1", "quorum = 2")) as federation:
        federation.serve()
        federation.join(0)
        federation.join(1)
        path = [str(home), str(Path(__file__).parents[1]), str(Path(fedadapt.__file__).parents[1])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
        desk = open_desk({"site": tmp_path / "site2" / "site.toml"})
        with _bare_node(federation, desk):
            assert federation.finish(3000) == 0, federation.said("server")
        log = federation.said("server")
    _, records, _ = hold_against_replay(federation.run)
    reasons = {record.round: record.reason for record in records if record.client == 2}
    assert reasons[1] == ""
    for number, (why, _) in enumerate(CONTENTS, start=2):
        assert why in reasons[number], (number, reasons[number])
    assert {reasons[number] for number in range(LAST + 1, rounds + 1)} == {"no reply"}
    assert re.search(r"node \d+ did not answer train.round: .*no reason", log)
    assert re.search(r"node \d+ did not answer train.round: .*KeyError", log)
    assert "\x1b" not in log
    assert max(map(len, log.splitlines())) < 700
    counted = {(r.round, r.client) for r in records if r.outcome is Outcome.ACCEPTED}
    assert counted == {(r, c) for r in range(1, rounds + 1) for c in range(2)} | {(1, 2)}


# The altered way is left with connections open, which uvloop says as it ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_noise_at_the_door(tmp_path):
    """Random bytes with a site's key and without, and noise in what that site's node says: the others finish."""
    rounds, tls = 8, tmp_path / "tls"
    with Federation(tmp_path, recipe(rounds, 20).replace("quorum = 1", "quorum = 2")) as federation:
        trust = ssl.create_default_context(cafile=str(tls / "ca.pem"))
        gate = Gate(f"https://127.0.0.1:{federation.port}", trust)
        twister, port = Twister(gate, share=0.1, seed=0), free_port()
        federation.serve()
        federation.wait_until_said("server", "open to sites", 300)
        with (
            GateServer(twister, "127.0.0.1", port, tls / "server.pem", tls / "server.key"),
            Noise(federation.port, tls / "ca.pem", tmp_path / "site2" / "key", seed=0) as noise,
        ):
            federation.join(0)
            federation.join(1)
            federation.join(2, *federation.credentials(2), port=port)
            assert federation.finish(3000) == 0, federation.said("server")
    _, records, _ = hold_against_replay(federation.run)
    assert {r.outcome for r in records if r.client != 2} == {Outcome.ACCEPTED}
    assert all(noise.heard[how] for how in ("tcp", "tls", "signed 400", "signed 401", "unsigned 401"))
    assert not any(how.endswith("200") for how in noise.heard)
    assert sum(twister.twisted.values()) > rounds

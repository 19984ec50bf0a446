"""An altered run file is refused in one line; it never gives other data than was committed."""

from __future__ import annotations

import random
import sqlite3

import pytest

from fedadapt.errors import RunError
from fedadapt.params import to_bytes
from fedadapt.runs.chain import digest
from fedadapt.runs.store import FILE, RunStore

ROUNDS = 4


@pytest.fixture(scope="module")
def content(tmp_path_factory, make_round):
    """The bytes of a small run's file."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with RunStore.create(path, {"seed": 7, "name": "first"}) as store:
        for number in range(ROUNDS):
            store.commit(make_round(number))
    return (path / FILE).read_bytes()


@pytest.fixture
def place(tmp_path):
    """Writes bytes where a run's file would be, and gives the run's directory."""

    def write(content: bytes):
        (tmp_path / FILE).write_bytes(content)
        return tmp_path

    return write


QUESTIONS = (
    lambda store: store.manifest,
    lambda store: store.last_round,
    RunStore.rounds,
    RunStore.clients,
    lambda store: store.clients(1),
    RunStore.ledger,
    lambda store: store.ledger(2),
    RunStore.ledger_totals,
    lambda store: to_bytes(store.state()),
    *(lambda store, client=client: to_bytes(store.memory(client) or {}) for client in (3, 4, 10, 13)),
)
"""All that a run can be asked for, as values that compare by content."""

REFUSED = "refused"


def ask(question, store: RunStore) -> object:
    """The answer, or `REFUSED` where it was refused as it should be, in one line."""
    try:
        return question(store)
    except RunError as error:
        return "not one line" if "\n" in str(error) else REFUSED


def answers(view, path) -> list[object]:
    """The answers to all questions, each asked for itself."""
    opened = ask(view, path)
    if not isinstance(opened, RunStore):
        return [opened] * len(QUESTIONS)
    with opened as store:
        return [ask(question, store) for question in QUESTIONS]


@pytest.mark.parametrize("view", [RunStore.read, RunStore.open])
def test_a_flipped_byte_is_refused_or_changes_nothing(content, place, view):
    """Over many places, with data or without, a changed byte gives the same reads or a RunError."""
    whole = answers(view, place(content))
    assert REFUSED not in whole
    draw = random.Random(20)
    used = [place for place, byte in enumerate(content) if byte]
    places = [*draw.sample(range(100), 20), *draw.sample(used, 80), *draw.sample(range(len(content)), 20)]
    refused = 0
    for position in places:
        altered = bytearray(content)
        altered[position] ^= 1 << draw.randrange(8)
        found = answers(view, place(altered))
        assert all(answer in (REFUSED, right) for answer, right in zip(found, whole, strict=True)), position
        refused += REFUSED in found
    assert refused > 50


@pytest.mark.parametrize("view", [RunStore.read, RunStore.open])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(content, place, view, share):
    """Of a file that ends early, even at its first byte, nothing but right answers are given."""
    whole = answers(view, place(content))
    found = answers(view, place(content[: int(len(content) * share)]))
    assert REFUSED in found
    assert all(answer in (REFUSED, right) for answer, right in zip(found, whole, strict=True))


@pytest.mark.parametrize("view", [RunStore.read, RunStore.open])
def test_a_file_of_something_else_is_refused(place, view):
    """Neither text nor an empty database nor one of another version is taken for a run."""
    with pytest.raises(RunError, match="not a database"):
        view(place(b"accuracy,loss\n" * 100))
    place(b"")
    with pytest.raises(RunError, match="file version 0"):
        view(place(b""))


def test_a_flipped_byte_in_the_log_of_a_killed_writer_leaves_a_prefix(tmp_path, make_round):
    """What a writer left in its log is read up to the damage, at a whole round, or refused."""
    source = tmp_path / "source"
    with RunStore.create(source, {}) as store:
        for number in range(ROUNDS):
            store.commit(make_round(number))
        left = {name: (source / name).read_bytes() for name in (FILE, f"{FILE}-wal")}
    states = [to_bytes(make_round(number).state) for number in range(ROUNDS)]
    draw = random.Random(3)
    lasts = set()
    for attempt in range(30):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        log = bytearray(left[f"{FILE}-wal"])
        log[draw.randrange(len(log))] ^= 0x40
        (folder / FILE).write_bytes(left[FILE])
        (folder / f"{FILE}-wal").write_bytes(log)
        with RunStore.open(folder) as store:
            lasts.add(store.last_round)
            if store.last_round is not None:
                assert to_bytes(store.state()) == states[store.last_round]
    assert len(lasts) > 1


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("UPDATE manifest SET document = replace(document, 'first', 'other')", "manifest"),
        ("DELETE FROM manifest", "manifest"),
        ("UPDATE rounds SET metrics = '{\"accuracy\": 1.0}' WHERE round = 1", "round 1"),
        ("UPDATE rounds SET wall_s = 0 WHERE round = 0", "round 0"),
        ("DELETE FROM rounds WHERE round = 1", "round 1"),
        ("DELETE FROM rounds WHERE round = 3", "last round"),
        ("DELETE FROM rounds", "last round"),
        ("UPDATE clients SET loss = 0 WHERE round = 1 AND client = 4", "clients of round 1"),
        ("DELETE FROM clients WHERE round = 0 AND client = 9", "clients of round 0"),
        ("UPDATE ledger SET num_bytes = num_bytes - 1 WHERE round = 2 AND position = 2", "ledger of round 2"),
        ("DELETE FROM ledger WHERE round = 1", "ledger of round 1"),
        ("UPDATE state SET bytes = zeroblob(8)", "state of round 3"),
        ("UPDATE state SET bytes = 'text'", "state of round 3"),
        ("UPDATE memory SET bytes = 'text' WHERE client = 4", "client 4"),
        ("UPDATE memory SET round = 'x' WHERE client = 4", "client 4|what clients keep"),
        ("DELETE FROM state", "state of round 3"),
        (
            "UPDATE memory SET bytes = (SELECT bytes FROM memory WHERE client = 10) WHERE client = 4",
            "client 4",
        ),
        ("DELETE FROM memory WHERE client = 10", "what clients keep"),
        ("UPDATE memory SET client = 15 WHERE client = 10", "what clients keep"),
    ],
)
def test_an_edited_row_is_refused(content, place, change, finding):
    """An edit by SQL, with the file intact as such, is found by `open` and by a reader's `verify`."""
    path = place(content)
    connection = sqlite3.connect(path / FILE)
    with connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(RunError, match=finding):
        RunStore.open(path)
    with RunStore.read(path) as store, pytest.raises(RunError, match=finding):
        store.verify()
    assert REFUSED in answers(RunStore.read, path)


def test_digest_by_hand():
    """A digest is SHA-256 of the values as ASCII literals, the same on every machine."""
    assert digest(1, "é", None).hex() == "397f4198d46d109e8afd74e3ab2bf31ad8f08c8732afa7406d867f48f6c4e6b7"

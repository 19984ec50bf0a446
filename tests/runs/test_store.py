"""A run directory gives back what was committed, whole rounds only, whatever happens to the process or disk."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadapt.errors import RunError
from fedadapt.runs.records import ClientRecord, Direction, LedgerEntry, Outcome, RoundRecord, RoundSummary
from fedadapt.runs.store import FILE, RunStore

MANIFEST = {"config": {"seed": 7, "rate": 0.1}, "classes": ["cat", "däg"], "hardware": None}


def make_run(path: Path, make_round, rounds: int = 3) -> None:
    """A run of a few rounds, closed."""
    with RunStore.create(path, MANIFEST) as store:
        for number in range(rounds):
            store.commit(make_round(number))


def same(left, right) -> bool:
    """Whether two `Streams` are equal bit by bit, in names, order, types and shapes."""
    return (
        list(left) == list(right)
        and all(list(left[stream]) == list(right[stream]) for stream in left)
        and all(
            tensor.dtype == right[stream][name].dtype and torch.equal(tensor, right[stream][name])
            for stream in left
            for name, tensor in left[stream].items()
        )
    )


@pytest.mark.parametrize("reopen", [RunStore.open, RunStore.read])
def test_a_run_gives_back_what_was_committed(tmp_path, make_round, reopen):
    """Manifest, metrics, clients, ledger, the newest state and each client's newest memory come back equal."""
    make_run(tmp_path / "a" / "b", make_round)
    with reopen(tmp_path / "a" / "b") as store:
        store.verify()
        assert store.manifest == MANIFEST
        assert store.last_round == 2
        assert store.rounds() == [
            RoundSummary(number, make_round(number).metrics, 1.5, 2.25) for number in range(3)
        ]
        assert store.clients() == [record for number in range(3) for record in make_round(number).clients]
        assert store.clients(1) == list(make_round(1).clients)
        assert store.ledger() == [entry for number in range(3) for entry in make_round(number).ledger]
        assert store.ledger(2) == list(make_round(2).ledger)
        assert store.clients(3) == store.ledger(3) == []
        assert same(store.state(), make_round(2).state)
        assert same(store.memory(4), make_round(2).memory[4])
        assert same(store.memory(10), make_round(0).memory[10])
        assert store.memory(9) is None


_number = st.none() | st.floats()


@settings(max_examples=30)
@given(
    rows=st.dictionaries(
        st.integers(0, 2**40),
        st.tuples(
            st.sampled_from(Outcome),
            st.integers(0, 2**40),
            st.integers(0, 2**40),
            _number,
            _number,
            st.text(),
        ),
        max_size=5,
    ),
    entries=st.lists(
        st.tuples(
            st.integers(0, 2**40), st.sampled_from(Direction), st.text(max_size=9), st.integers(0, 2**40)
        ),
        max_size=8,
    ),
    metrics=st.dictionaries(st.text(), st.floats(), max_size=3),
)
def test_any_rows_come_back_equal_and_verify(rows, entries, metrics):
    """Every number, NaN and infinity included, and every text survives, also twice the same ledger entry."""
    clients = tuple(ClientRecord(0, client, *rest) for client, rest in sorted(rows.items()))
    ledger = tuple(LedgerEntry(0, *entry) for entry in entries)
    with tempfile.TemporaryDirectory() as folder:
        with RunStore.create(Path(folder) / "run", {}) as store:
            store.commit(RoundRecord(0, {}, metrics, clients, ledger))
        with RunStore.open(Path(folder) / "run") as store:
            assert repr(store.clients()) == repr(list(clients)).replace("=-0.0", "=0.0")
            assert store.ledger() == list(ledger)
            assert repr(store.rounds()[0].metrics) == repr(metrics)


def test_a_client_view_of_a_stacked_tensor_can_be_kept(tmp_path):
    """Memory may be views that share storage along the client axis; each comes back alone."""
    stacked = torch.arange(6.0).reshape(2, 3)
    with RunStore.create(tmp_path / "run", {}) as store:
        store.commit(
            RoundRecord(0, {"a": {"w": stacked[0], "v": stacked[1]}}, memory={1: {"m": {"w": stacked[1]}}})
        )
        assert same(store.state(), {"a": {"w": stacked[0], "v": stacked[1]}})
        assert same(store.memory(1), {"m": {"w": stacked[1]}})


def test_a_state_in_several_parts_comes_back_whole(tmp_path, make_round, monkeypatch):
    """A state longer than one row is cut and joined, and a shorter one leaves nothing of it behind."""
    monkeypatch.setattr("fedadapt.runs.chain._STATE_PART", 100)
    with RunStore.create(tmp_path / "run", {}) as store:
        store.commit(replace(make_round(0), state={"model": {"w": torch.arange(1000)}}))
        assert same(store.state(), {"model": {"w": torch.arange(1000)}})
        store.commit(replace(make_round(1), state={"model": {}}))
        assert same(store.state(), {"model": {}})
        store.verify()


def test_a_run_without_rounds_has_no_state(tmp_path):
    """Before the first commit there is no last round, no memory, and asking for the state is an error."""
    with RunStore.create(tmp_path / "run", {}) as store:
        assert store.last_round is None
        assert store.rounds() == store.clients() == store.ledger() == store.ledger_totals() == []
        assert store.memory(0) is None
        with pytest.raises(RunError, match="no committed round"):
            store.state()


@pytest.mark.parametrize(("committed", "next_round"), [(0, 1), (0, -1), (2, 1), (2, 3), (2, 0)])
def test_rounds_are_committed_in_order(tmp_path, make_round, committed, next_round):
    """A round that is not the one after the last is refused, and the store goes on with the right one."""
    make_run(tmp_path / "run", make_round, committed)
    with RunStore.open(tmp_path / "run") as store:
        with pytest.raises(RunError, match=f"next round .* is {committed}, not {next_round}"):
            store.commit(make_round(next_round))
        store.commit(make_round(committed))
        assert store.last_round == committed


@pytest.mark.parametrize("field", ["clients", "ledger"])
def test_rows_of_another_round_are_refused(tmp_path, make_round, field):
    """A record whose clients or ledger name another round is refused before anything is written."""
    with RunStore.create(tmp_path / "run", {}) as store:
        with pytest.raises(RunError, match="of another round"):
            store.commit(replace(make_round(0), **{field: getattr(make_round(1), field)}))
        assert store.last_round is None


@pytest.mark.parametrize(
    "change",
    [
        {"clients": (ClientRecord(1, 4, Outcome.ACCEPTED), ClientRecord(1, 4, Outcome.LATE))},
        {"ledger": (LedgerEntry(1, 4, Direction.UPLOAD, "adapter", 2**63),)},
        {"clients": (ClientRecord(1, 4, Outcome.FAILED, reason="\udcff"),)},
        {"wall_s": math.nan},
    ],
)
def test_a_round_that_cannot_be_stored_leaves_nothing(tmp_path, make_round, change):
    """Rows that the database refuses end in one line, and state and memory stay those of the round before."""
    make_run(tmp_path / "run", make_round, 1)
    with RunStore.open(tmp_path / "run") as store:
        with pytest.raises(
            RunError, match="nothing of round 1 was written; rounds up to 0 are safe"
        ) as caught:
            store.commit(replace(make_round(1), **change))
        assert "\n" not in str(caught.value)
        store.verify()
        assert store.last_round == 0
        assert same(store.state(), make_round(0).state)
        assert same(store.memory(4), make_round(0).memory[4])
        assert store.memory(11) is None


def test_create_refuses_a_directory_that_holds_a_run(tmp_path, make_round):
    """The run that is there stays as it is, and the message names the ways on."""
    make_run(tmp_path / "run", make_round)
    with pytest.raises(RunError, match=r"already holds a run.*resume.*--overwrite"):
        RunStore.create(tmp_path / "run", {})
    with RunStore.open(tmp_path / "run") as store:
        assert store.last_round == 2


def test_create_refuses_a_file_and_what_is_below_it(tmp_path):
    """A path that is a file, or leads through one, is refused and nothing is made."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="is a file"):
        RunStore.create(tmp_path / "file", {})
    with pytest.raises(RunError, match="Not a directory"):
        RunStore.create(tmp_path / "file" / "run", {})
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("step", ["_write_new", "_connect", "acquire"])
def test_create_that_fails_leaves_nothing(tmp_path, monkeypatch, step):
    """Whichever step of it fails, the directories, the lock and the file that it made are gone, not others."""

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"fedadapt.runs.store.{step}", refuse)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(RunError, match="No space left"):
        RunStore.create(tmp_path / "a" / "b", {})
    with pytest.raises(RunError, match="No space left"):
        RunStore.create(tmp_path / "mine", {})
    assert [item.name for item in tmp_path.iterdir()] == ["mine"]
    assert {item.name for item in (tmp_path / "mine").iterdir()} <= {"notes.txt", "lock"}
    monkeypatch.undo()
    RunStore.create(tmp_path / "mine", {}).close()


def test_create_that_fails_after_the_file_is_there_removes_it(tmp_path, monkeypatch):
    """A run file that its own process could not open for writing is not left behind as an empty run."""

    def refuse(_):
        raise RunError("no")

    monkeypatch.setattr(RunStore, "verify", refuse)
    with pytest.raises(RunError, match="no"):
        RunStore.create(tmp_path / "a" / "b", {})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_json_cannot_hold_makes_nothing(tmp_path):
    """The mistake is the caller's, so it is a TypeError, and it comes before the directory."""
    with pytest.raises(TypeError):
        RunStore.create(tmp_path / "run", {"path": tmp_path})
    assert not (tmp_path / "run").exists()


def test_a_stale_log_is_not_taken_for_that_of_a_new_run(tmp_path, make_round):
    """Where a run file was removed by hand but its log was not, a new run begins empty."""
    with RunStore.create(tmp_path / "run", MANIFEST) as store:
        store.commit(make_round(0))
        log = (tmp_path / "run" / f"{FILE}-wal").read_bytes()
    (tmp_path / "run" / FILE).unlink()
    (tmp_path / "run" / f"{FILE}-wal").write_bytes(log)
    with RunStore.create(tmp_path / "run", {"new": True}) as store:
        assert store.manifest == {"new": True}
        assert store.last_round is None


@pytest.mark.parametrize("reopen", [RunStore.open, RunStore.read])
def test_a_directory_without_a_run_is_refused_and_left_alone(tmp_path, reopen):
    """Opening nothing is one line, and makes no file."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunError, match="there is no run in"):
            reopen(path)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_commit_and_makes_no_file(tmp_path, make_round):
    """A closed run is one file and a lock, and reading it changes neither."""
    make_run(tmp_path / "run", make_round)
    before = {item.name: item.read_bytes() for item in (tmp_path / "run").iterdir()}
    assert set(before) == {FILE, "lock"}
    with RunStore.read(tmp_path / "run") as store:
        store.verify()
        with pytest.raises(RunError, match="not open for writing"):
            store.commit(make_round(3))
        assert {item.name: item.read_bytes() for item in (tmp_path / "run").iterdir()} == before
    assert {item.name: item.read_bytes() for item in (tmp_path / "run").iterdir()} == before


def test_a_reader_follows_a_writer(tmp_path, make_round):
    """A reader opened before, during or after writing sees every committed round, and stops nobody."""
    make_run(tmp_path / "run", make_round, 1)
    with RunStore.read(tmp_path / "run") as early:
        assert early.last_round == 0
        with RunStore.open(tmp_path / "run") as writer, RunStore.read(tmp_path / "run") as reader:
            for number in (1, 2):
                writer.commit(make_round(number))
                for store in (early, reader):
                    store.verify()
                    assert store.last_round == number
                    assert same(store.state(), make_round(number).state)
        assert early.last_round == 2
        with RunStore.open(tmp_path / "run") as writer:
            writer.commit(make_round(3))
            assert early.last_round == 3
    with RunStore.read(tmp_path / "run") as store:
        assert store.last_round == 3


def test_one_call_sees_one_moment(tmp_path, make_round):
    """A round committed while a reader is in the middle of a call does not show in that call."""
    make_run(tmp_path / "run", make_round, 1)
    with RunStore.open(tmp_path / "run") as writer, RunStore.read(tmp_path / "run") as reader:
        with reader._reading() as connection:
            count = "SELECT count(*) FROM rounds"
            assert connection.execute(count).fetchone() == (1,)
            writer.commit(make_round(1))
            assert connection.execute(count).fetchone() == (1,)
        assert reader.last_round == 1


def test_a_closed_store_says_so(tmp_path, make_round):
    """Closing twice is fine; using a closed store is a RunError."""
    store = RunStore.create(tmp_path / "run", {})
    store.close()
    store.close()
    with pytest.raises(RunError, match="closed"):
        _ = store.last_round
    with pytest.raises(RunError, match="not open for writing"):
        store.commit(make_round(0))


def test_paths_may_have_any_character(tmp_path, make_round):
    """A path with characters that mean something in a URI is a path like others."""
    make_run(tmp_path / "50% of #1? é", make_round)
    with RunStore.read(tmp_path / "50% of #1? é") as store:
        assert store.last_round == 2


def test_only_the_newest_state_takes_room(tmp_path, make_round):
    """The file of many rounds with a large state is hardly larger than that of two."""
    large = {"model": {"w": torch.zeros(100_000)}}
    with RunStore.create(tmp_path / "run", {}) as store:
        for number in range(2):
            store.commit(replace(make_round(number), state=large))
    short = (tmp_path / "run" / FILE).stat().st_size
    with RunStore.open(tmp_path / "run") as store:
        for number in range(2, 12):
            store.commit(replace(make_round(number), state=large))
    assert (tmp_path / "run" / FILE).stat().st_size < short + 100_000

"""A cohort on real Ray actors gives what it gives in process, and survives their death."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny import TOML, StopAfter, Stopped, outcome, start, tiny

import fedadapt
from fedadapt.backbones.weights import save_weights
from fedadapt.engines.ray import Need, RayEngine
from fedadapt.errors import ConfigError, EngineError
from fedadapt.experiment import resume, run
from fedadapt.experiment.build import build
from fedadapt.experiment.run import Watcher
from fedadapt.params import from_bytes

ray = pytest.importorskip("ray", reason="needs the extra fedadapt[ray]")
pytestmark = pytest.mark.ray

ON_RAY = ("engine=ray", "engine.actors=2")
REMEMBERING = (
    "codec=rotate > int4 > zstd",
    "codec.error_feedback=true",
    "norms=local",
    "data.local_test_fraction=0.3",
    "cohort=3",
)
"""Settings under which clients keep tensors, both directions are lossy, and a site holds a version for all."""


def begin(tries=3):
    """Starts Ray; on a machine that does much else, its processes may miss the half minute that it gives them."""
    try:
        ray.init(
            "local",
            num_cpus=2,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
        )
    except Exception:
        ray.shutdown()
        if tries == 1:
            raise
        begin(tries - 1)


@pytest.fixture(scope="module", autouse=True)
def head():
    """One small cluster for all tests of this file, which this process has joined; its address."""
    with pytest.MonkeyPatch.context() as patch:
        # The processes that Ray starts should find the same source, and count nothing for anybody.
        patch.setenv("PYTHONPATH", str(Path(fedadapt.__file__).parents[1]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Actors are nice by default, and would wait for whatever else the machine does.
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        terminate = signal.getsignal(signal.SIGTERM)
        begin()
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
        signal.signal(signal.SIGTERM, terminate)


@pytest.fixture
def engines(monkeypatch):
    """Every Ray engine that a test's runs make."""
    made = []
    begin = RayEngine.__init__

    def noting(self, *args):
        made.append(self)
        begin(self, *args)

    monkeypatch.setattr(RayEngine, "__init__", noting)
    return made


def result(path):
    """The outcome of a run, but for its configuration, which names the engine."""
    return {key: value for key, value in outcome(path).items() if key != "config"}


def pid_of(seat):
    """The process of an actor that is ready."""
    return int(re.match(r"process (\d+) on ", seat.where)[1])


def test_other_chunks_change_no_more_than_rounding(tmp_path):
    """Four clients are one chunk here and two there: states agree to float tolerance, ledgers to the byte."""
    settings = ("rounds=2", "algorithm=scaffold", "data.partition=dirichlet")
    here = outcome(run(tiny(*settings), tmp_path / "here"))
    there = outcome(run(tiny(*settings, *ON_RAY), tmp_path / "there"))
    assert there["ledger"] == here["ledger"]
    for ours, theirs in zip(
        (here["state"], *here["memory"]), (there["state"], *there["memory"]), strict=True
    ):
        torch.testing.assert_close(from_bytes(theirs), from_bytes(ours), rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(here["clients"], there["clients"], strict=True):
        assert (theirs.client, theirs.outcome, theirs.num_steps) == (
            ours.client,
            ours.outcome,
            ours.num_steps,
        )
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-4)


def test_an_actor_killed_in_the_middle_of_a_round_changes_nothing(tmp_path, engines, monkeypatch):
    """Its chunk is done by another one, no reply counts twice, and with the same chunks all is as in process.

    That is bit for bit the state, what clients keep, and every record; the ledger to the byte.
    """
    settings = (*REMEMBERING, "engine.chunk=1")
    given, killed, answered = [], [], []
    ask = RayEngine._ask

    def asking(self, actor, requests, *rest):
        task = ask(self, actor, requests, *rest)
        given.append((requests[0].round, requests[0].client))
        if answered == [2] and not killed:
            # One client has answered in round 2, two are at work; this one has its chunk and no time to do it.
            killed.extend(pid_of(seat) for seat in self._seats if seat.actor is actor)
            os.kill(killed[0], signal.SIGKILL)
        return task

    class Note(Watcher):
        """Notes who has answered in round 2."""

        def clients(self, round, cohort, done):
            """Some have answered."""
            if round == 2:
                answered.append(round)

    monkeypatch.setattr(RayEngine, "_ask", asking)
    path = run(tiny(*ON_RAY, *settings), tmp_path / "there", watcher=Note())
    again = [one for one in given if given.count(one) > 1]
    assert len(killed) == 1
    assert len(given) == 3 * 3 + 1
    assert [round for round, _ in again] == [2, 2]
    assert all(f"process {killed[0]} " not in seat.where for seat in engines[0]._seats)
    assert result(path) == result(run(tiny(*settings), tmp_path / "here"))


def test_a_chunk_that_kills_every_actor_ends_the_run(tmp_path, monkeypatch):
    """The message names the clients; what was committed before is there, and can go on in process."""
    killed = []
    monkeypatch.setattr("fedadapt.engines.ray.MAX_DEATHS", 2)
    ask = RayEngine._ask

    def asking(self, actor, requests, *rest):
        (seat,) = self._seats
        task = ask(self, actor, requests, *rest)
        if requests[0].round == 2:
            killed.append(requests[0].client)
            os.kill(pid_of(seat), signal.SIGKILL)
        return task

    monkeypatch.setattr(RayEngine, "_ask", asking)
    config = tiny("engine=ray", "engine.actors=1", "data.num_clients=2")
    with pytest.raises(
        EngineError, match=r"2 actors died over clients 0, 1: .*smaller engine\.chunk"
    ) as caught:
        run(config, tmp_path)
    assert "\n" not in str(caught.value)
    # Of the first it is not known whether it died over them: it had said nothing since the round before.
    assert len(killed) == 3
    assert resume(tmp_path / "tiny", ["engine=local"]) == tmp_path / "tiny"
    assert result(tmp_path / "tiny") == result(run(tiny("data.num_clients=2"), tmp_path / "here"))


def test_an_actor_that_died_between_rounds_is_not_charged_to_a_chunk(tmp_path, engines, monkeypatch):
    """Of two deaths in a round one came before it, and the chunk is given out again where two would be too many."""
    monkeypatch.setattr("fedadapt.engines.ray.MAX_DEATHS", 2)
    given, ask = [], RayEngine._ask

    def kill():
        (seat,) = engines[0]._seats
        os.kill(pid_of(seat), signal.SIGKILL)

    def asking(self, actor, requests, *rest):
        task = ask(self, actor, requests, *rest)
        given.append(requests[0].round)
        if given.count(2) == 2:
            kill()
        return task

    class Idle(Watcher):
        """Kills the actor after round 1."""

        def committed(self, record):
            """It sits idle."""
            if record.round == 1:
                kill()

    monkeypatch.setattr(RayEngine, "_ask", asking)
    settings = ("data.num_clients=2", "rounds=2")
    path = run(tiny("engine=ray", "engine.actors=1", *settings), tmp_path / "there", watcher=Idle())
    assert given == [1, 2, 2, 2]
    assert result(path) == result(run(tiny(*settings), tmp_path / "here"))


def test_a_run_goes_on_where_it_stopped(tmp_path, engines):
    """Resumed on the cluster or in process, a run ends in the bits of one that was never stopped."""
    with pytest.raises(Stopped):
        run(
            tiny(*REMEMBERING, "engine=ray", "engine.actors=1", "engine.chunk=1"),
            tmp_path,
            watcher=StopAfter(1),
        )
    stopped, copy = tmp_path / "tiny", tmp_path / "copy"
    shutil.copytree(stopped, copy)
    whole = result(run(tiny(*REMEMBERING, "engine.chunk=1"), tmp_path / "whole"))
    assert result(resume(stopped)) == whole
    assert len(engines) == 2
    assert result(resume(copy, ["engine=local", "engine.chunk=1"])) == whole
    assert len(engines) == 2
    assert outcome(copy)["config"] == outcome(stopped)["config"]


def test_what_fails_on_an_actor_is_one_line(tmp_path, engines, monkeypatch):
    """A weight file that only the driver has is named, with the process that lacks it."""
    weights = tmp_path / "weights.safetensors"
    save_weights(build(tiny()).backbone.module, weights, {})
    start_actor = RayEngine._start

    def without(self):
        weights.unlink(missing_ok=True)
        return start_actor(self)

    monkeypatch.setattr(RayEngine, "_start", without)
    with pytest.raises(EngineError, match=r"failed: .*weights\.safetensors") as caught:
        run(tiny(f"backbone.weights={weights}", "engine=ray", "engine.actors=1"), tmp_path / "runs")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (["engine=rai"], ConfigError, ["unknown engine 'rai'", "did you mean 'ray'?", "local"]),
        (["engine.address=x"], ConfigError, ["engine 'local'", "unknown key 'address'", "chunk"]),
        (["engine=ray", "engine.actors=0"], ConfigError, ["engine 'ray'", "'actors' is 0"]),
        (["engine=ray", "engine.gpus=2"], ConfigError, ["engine 'ray'", "'gpus' is 2"]),
        (["engine=ray", "engine.chunk=0"], ConfigError, ["engine 'ray'", "'chunk' is 0"]),
        (
            ["engine=ray", "engine.cpus=64"],
            EngineError,
            ["no machine", "64 CPUs", "there are 2 CPUs", "engine.cpus"],
        ),
        (["engine=ray", "engine.gpus=0.5"], EngineError, ["no machine", "0.5 GPUs", "engine.gpus"]),
        (
            ["engine=ray", "engine.address=10.9.8.7:6379"],
            EngineError,
            ["has joined", "10.9.8.7:6379", "leave it out"],
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_begins(tmp_path, settings, error, words):
    """The message says what is wrong and what to do; nothing is written."""
    with pytest.raises(error) as caught:
        run(tiny(*settings), tmp_path)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_only_the_engine_may_change_in_a_run(tmp_path):
    """A setting that would change the result is refused when a run goes on."""
    path = run(tiny("rounds=1"), tmp_path)
    with pytest.raises(ConfigError, match=r"but for its engine; 'train\.lr=1' is none"):
        resume(path, ["train.lr=1"])


def test_room_is_counted_by_machine():
    """Of two processors each, eight hold four; with 0.4 of a GPU each, one GPU holds two and not two and a half."""
    assert Need(2, 0).fits({"CPU": 8.0}) == 4
    assert [Need(1, 0.4).fits({"CPU": 8.0, "GPU": gpus}) for gpus in (1.0, 2.0, 5.0)] == [2, 4, 8]
    assert Need(2, 1).fits({"CPU": 8.0}) == 0
    assert (Need(1, 0).device, Need(1, 0.5).device) == ("cpu", "cuda")


def test_the_command_line_joins_a_cluster(tmp_path, head):
    """``run --engine ray --address`` from a process of its own: the result of a run without, and nothing on stderr."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TOML, encoding="utf-8")
    process = start(
        *("run", recipe, "--runs", tmp_path / "there", "--engine", "ray", "--address", head),
        *("--set", "engine.actors=1", "--set", "engine.chunk=2"),
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), err
    assert "done: " in out
    assert result(tmp_path / "there" / "tiny") == result(run(tiny("engine.chunk=2"), tmp_path / "here"))


@pytest.fixture
def alone(monkeypatch):
    """This process as if it had joined no cluster."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("address", ["nowhere", "localhost:x", "ray://localhost:10001", "localhost:99999999"])
def test_an_address_that_is_none(tmp_path, alone, address):
    """What is not HOST:PORT is answered at once."""
    with pytest.raises(EngineError, match=re.escape(repr(address))) as caught:
        run(tiny("engine=ray", f"engine.address={address}"), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_address_where_nobody_is(tmp_path, alone):
    """An earlier run that was to be replaced is still there."""
    path = run(tiny("rounds=1"), tmp_path)
    before = outcome(path)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = "{}:{}".format(*server.getsockname())
    with pytest.raises(
        EngineError, match=f"nothing answers at engine.address '{address}'.*ray start --head"
    ) as caught:
        run(tiny("engine=ray", f"engine.address={address}"), tmp_path, overwrite=True)
    assert "\n" not in str(caught.value)
    assert outcome(path) == before


def test_without_ray(tmp_path, monkeypatch):
    """Where Ray is not installed, the message says how to get it; nothing is written, and planning works."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"Ray is not installed; .* pip install 'fedadapt\[ray\]'"):
        run(tiny("engine=ray"), tmp_path)
    assert list(tmp_path.iterdir()) == []

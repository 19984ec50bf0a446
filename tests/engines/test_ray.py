"""A cohort on real Ray actors gives what it gives in process, and survives their death."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny import TOML, StopAfter, Stopped, outcome, start, tiny

import fedadapt
from fedadapt.engines.ray import MAX_DEATHS, Need, RayEngine
from fedadapt.errors import ConfigError, EngineError
from fedadapt.experiment import resume, run
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


@pytest.fixture(scope="module", autouse=True)
def head():
    """One small cluster for all tests of this file, which this process has joined; its address."""
    with pytest.MonkeyPatch.context() as patch:
        # The processes that Ray starts should find the same source, and count nothing for anybody.
        patch.setenv("PYTHONPATH", str(Path(fedadapt.__file__).parents[1]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        terminate = signal.getsignal(signal.SIGTERM)
        ray.init(
            "local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False
        )
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


@pytest.mark.parametrize(
    "settings",
    [REMEMBERING, ("algorithm=scaffold", "data.partition=dirichlet")],
    ids=["remembering", "scaffold"],
)
def test_actors_give_what_this_process_gives(tmp_path, settings):
    """With the same chunks, the same bits: state, memory, clients and accuracies; and the same bytes in the ledger."""
    here = run(tiny(*settings, "engine.chunk=1"), tmp_path / "here")
    there = run(tiny(*settings, *ON_RAY, "engine.chunk=1"), tmp_path / "there")
    assert result(there) == result(here)


def test_other_chunks_change_no_more_than_rounding(tmp_path):
    """Four clients are one chunk here and two there: states agree to float tolerance, ledgers to the byte."""
    here, there = run(tiny("rounds=2"), tmp_path / "here"), run(tiny("rounds=2", *ON_RAY), tmp_path / "there")
    one, two = outcome(here), outcome(there)
    assert two["ledger"] == one["ledger"]
    torch.testing.assert_close(from_bytes(two["state"]), from_bytes(one["state"]), rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(one["clients"], two["clients"], strict=True):
        assert (theirs.client, theirs.outcome, theirs.num_steps) == (
            ours.client,
            ours.outcome,
            ours.num_steps,
        )
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)


def test_an_actor_killed_in_the_middle_of_a_round_changes_nothing(tmp_path, engines, monkeypatch):
    """Its chunk is done by another one, no reply counts twice, and the run ends in the same bits as without Ray."""
    settings = (*REMEMBERING, "engine.chunk=1")
    given, stopped = [], []
    ask = RayEngine._ask

    def asking(self, actor, requests, *rest):
        given.append((requests[0].round, requests[0].client))
        (seat,) = (seat for seat in self._seats if seat.actor is actor)
        if requests[0].round == 2 and not stopped:
            # It gets the chunk and cannot finish it.
            stopped.append(pid_of(seat))
            os.kill(stopped[0], signal.SIGSTOP)
        return ask(self, actor, requests, *rest)

    class Kill(Watcher):
        """Kills the stopped actor once another one has answered."""

        def clients(self, round, cohort, done):
            """Some have answered."""
            if round == 2 and done == 1:
                os.kill(stopped[0], signal.SIGKILL)

    monkeypatch.setattr(RayEngine, "_ask", asking)
    path = run(tiny(*settings, *ON_RAY), tmp_path / "there", watcher=Kill())
    lost = next(one for one in given if one[0] == 2)
    assert {one: given.count(one) for one in given} == dict.fromkeys(given, 1) | {lost: 2}
    assert len(given) == 3 * 3 + 1
    assert pid_of(engines[0]._seats[0]) != stopped[0]
    assert result(path) == result(run(tiny(*settings), tmp_path / "here"))


def test_a_chunk_that_kills_every_actor_ends_the_run(tmp_path, monkeypatch):
    """After three deaths the message names the clients; what was committed before is there."""
    killed = []
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
        EngineError, match=r"3 actors died over clients 0, 1: .*smaller engine\.chunk"
    ) as caught:
        run(config, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(killed) == MAX_DEATHS
    monkeypatch.undo()
    assert resume(tmp_path / "tiny", ["engine=local"]) == tmp_path / "tiny"
    assert result(tmp_path / "tiny") == result(run(tiny("data.num_clients=2"), tmp_path / "here"))


def test_a_run_goes_on_where_it_stopped(tmp_path, engines):
    """Resumed on the cluster or in process, a run ends in the bits of one that was never stopped."""
    settings = (*REMEMBERING, "engine=ray", "engine.actors=1", "engine.chunk=1")
    whole = result(run(tiny(*REMEMBERING, "engine.chunk=1"), tmp_path / "whole"))
    for how, made in ((), 2), (("engine=local", "engine.chunk=1"), 3):
        path = tmp_path / str(made) / "tiny"
        with pytest.raises(Stopped):
            run(tiny(*settings), path.parent, watcher=StopAfter(1))
        assert result(resume(path, how)) == whole
        assert len(engines) == made
        assert outcome(path)["config"]["engine"]["name"] == "ray"


def test_what_fails_on_an_actor_is_one_line(tmp_path, engines, monkeypatch):
    """A weight file that only the driver has is named, with the process that lacks it."""
    weights = tmp_path / "weights.safetensors"
    from fedadapt.backbones.weights import save_weights
    from fedadapt.experiment.build import build

    save_weights(build(tiny()).backbone.module, weights, {}, torch.float32)
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
        (["engine=ray", "engine.gpus=-1"], ConfigError, ["engine 'ray'", "'gpus' is -1"]),
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
    """Three actors of two processors and a third of a GPU: eight processors hold four, one GPU three, none none."""
    assert Need(2, 0).fits({"CPU": 8.0}) == 4
    assert Need(2, 0.33).fits({"CPU": 8.0, "GPU": 1.0}) == 3
    assert Need(2, 1).fits({"CPU": 8.0}) == 0
    assert (Need(1, 0).device, Need(1, 0.5).device) == ("cpu", "cuda")


def test_the_command_line_joins_a_cluster(tmp_path, head):
    """``run --engine ray --address`` from a process of its own: the result of a run without, and nothing on stderr."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TOML, encoding="utf-8")
    process = start(
        *("run", recipe, "--runs", tmp_path / "there", "--engine", "ray", "--address", head),
        *("--set", "engine.actors=2", "--set", "engine.chunk=2"),
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

"""A federation whose processes are killed at random instants, and what must hold of it afterwards."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodes import Federation
from tiny import TOML

from fedadapt.engines.local import LocalEngine
from fedadapt.experiment.build import build
from fedadapt.experiment.config import RunConfig, make_config
from fedadapt.federation.round import play
from fedadapt.params import Streams, to_bytes
from fedadapt.runs.records import ClientRecord, Outcome
from fedadapt.runs.store import RunStore
from fedadapt.training.evaluate import evaluate
from fedadapt.training.processor import tuned_processor

KINDS = {
    "serve": "server",
    "SuperLink": b"flower-superlink",
    "server SuperExec": b"flower-superexec",
    "server app": b"flwr-serverapp",
    "join": "site",
    "SuperNode": b"flower-supernode",
    "site SuperExec": b"flower-superexec",
    "client app": b"flwr-clientapp",
    "worker": b"fedadapt.experiment.worker",
}
"""What may be killed, and how its process is told from others: by its program, or as one that the test started."""


def recipe(rounds: int, deadline_s: float) -> str:
    """A run file for three sites under SCAFFOLD: what each remembers matters, and so does what the server keeps."""
    text = TOML.replace("num_clients = 4", "num_clients = 3").replace("limit = 120", "limit = 300")
    text = text.replace("lr = 0.01", "lr = 0.1\nbatch_size = 16")
    top = f"rounds = {rounds}\nadapter = {{name = 'full'}}\nnorms = {{name = 'averaged'}}\nalgorithm = {{name = 'scaffold'}}"
    text = text.replace("rounds = 3", top)
    return text + f"[engine]\nchunk = 1\n[federation]\nquorum = 1\ndeadline_s = {deadline_s}\n"


@dataclass
class Figures:
    """What a tormented run came to."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    updates_asked: int = 0
    updates_lost: int = 0
    lost_by_reason: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    accuracy: float = 0.0
    accuracy_undisturbed: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        recovery = [round(seconds, 1) for seconds in self.recovery_s]
        # Not asdict: it makes counters of a counter's pairs.
        return vars(self) | {"recovery_s": recovery}


def torment(folder: Path, rounds: int, seed: int, deadline_s: float, kills: int) -> Figures:
    """Runs a federation to its end while each kind of process is killed `kills` times at random instants.

    Kills come in turns: in each, every kind is killed once, in random order, with pauses between them that are drawn
    up to a third of a round; then it is waited until a round is committed. Whoever started the server and the sites
    starts them again, as a service manager would.
    """
    draw, figures, begun = random.Random(seed), Figures(rounds=rounds), time.monotonic()
    with Federation(folder, recipe(rounds, deadline_s)) as federation:
        watch = _Watch(federation)
        federation.serve()
        for client in federation.sites:
            federation.join(client)
        watch.wait_for_round(1)
        length = watch.wait_for_round(2)
        for _ in range(kills):
            if watch.finished:
                break
            last = 0.0
            for kind in draw.sample(sorted(KINDS), len(KINDS)):
                watch.pause(draw.uniform(0, length / 3))
                if watch.kill(kind, draw):
                    figures.kills[kind] += 1
                    last = time.monotonic()
            done = watch.rounds_done()
            if last and not watch.finished:
                watch.wait_for_round(min(done + 1, rounds))
                figures.recovery_s.append(time.monotonic() - last)
        while not watch.finished:
            watch.pause(0.5)
    figures.wall_s = time.monotonic() - begun
    _check(federation.run, figures)
    return figures


class _Watch:
    """Sees to it that what was killed is started again, and knows how far the run is."""

    def __init__(self, federation: Federation, patience_s: float = 900.0) -> None:
        self._federation = federation
        self._patience_s = patience_s
        self.finished = False

    def look(self) -> None:
        for name, process in list(self._federation.processes.items()):
            if process.poll() is None:
                continue
            if name == "server":
                if process.returncode == 0:
                    self.finished = True
                    continue
                self._federation.serve()
            else:
                self._federation.join(int(name.removeprefix("site")))

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.finished and time.monotonic() < until:
            self.look()
            time.sleep(0.1)

    def rounds_done(self) -> int:
        try:
            with RunStore.read(self._federation.run) as store:
                return store.last_round or 0
        except Exception:
            if (self._federation.run / "run.sqlite").exists():
                raise
            return 0

    def wait_for_round(self, number: int) -> float:
        """Waits until a round is committed; gives the seconds that took."""
        begun = time.monotonic()
        while not self.finished and self.rounds_done() < number:
            assert time.monotonic() - begun < self._patience_s, self._federation.said("server")
            self.pause(0.3)
        return time.monotonic() - begun

    def kill(self, kind: str, draw: random.Random) -> bool:
        """Kills a process of a kind, as soon as there is one; a run that ends meanwhile is left in peace."""
        begun = time.monotonic()
        while not self.finished and time.monotonic() - begun < 60:
            found = self._find(kind)
            if found:
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(found), signal.SIGKILL)
                    return True
            self.look()
            time.sleep(0.02)
        return False

    def _find(self, kind: str) -> list[int]:
        mark, own = KINDS[kind], self._federation.processes
        if isinstance(mark, str):
            return [p.pid for name, p in own.items() if name.startswith(mark) and p.poll() is None]
        side = "site" if kind.startswith("site") else "server" if kind.startswith("server ") else ""
        roots = {p.pid for name, p in own.items() if name.startswith(side)}
        return _descendants(roots, mark)


def _descendants(roots: set[int], mark: bytes) -> list[int]:
    parents, commands = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(parent)
                commands[int(folder.name)] = b"" if state == "Z" else (folder / "cmdline").read_bytes()

    def is_below(number: int) -> bool:
        while number in parents:
            if number in roots:
                return True
            number = parents[number]
        return False

    return sorted(n for n, command in commands.items() if mark in command and is_below(n))


def kill_tree(federation: Federation, name: str) -> int:
    """Kills a process of a federation and all that it started, at one instant; gives how many that were."""
    root = federation.processes.pop(name)
    numbers = _descendants({root.pid}, b"")
    for number in numbers:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    root.wait()
    return len(numbers)


def _check(path: Path, figures: Figures) -> None:
    """Holds the run against its simulation, and writes down what became of the updates."""
    config, clients, accuracy = hold_against_replay(path)
    assert len(clients) == 3 * config.rounds
    everyone = {(record.round, record.client) for record in clients}
    figures.updates_asked = len(clients)
    figures.updates_lost = sum(record.outcome is not Outcome.ACCEPTED for record in clients)
    figures.lost_by_reason.update(f"{r.outcome}: {r.reason}" for r in clients if r.reason)
    figures.accuracy, figures.accuracy_undisturbed = accuracy, replay(config, everyone)[1]


def hold_against_replay(path: Path) -> tuple[RunConfig, list[ClientRecord], float]:
    """Holds a run against a simulation in which just the updates counted that the run says counted, bit for bit.

    Returns:
        What was to be run, what became of each update that was asked for, and the last accuracy.
    """
    with RunStore.read(path) as store:
        config, state = make_config(store.manifest["config"]), store.state()
        clients, summaries = store.clients(), store.rounds()
        store.verify()
    assert [summary.round for summary in summaries] == list(range(config.rounds + 1))
    assert len({(record.round, record.client) for record in clients}) == len(clients)
    counted = {(r.round, r.client) for r in clients if r.outcome is Outcome.ACCEPTED}
    state_then, accuracy = replay(config, counted)
    assert to_bytes(state_then) == to_bytes(state)
    assert accuracy == summaries[-1].metrics["accuracy"]
    return config, clients, accuracy


def replay(config: RunConfig, counted: set[tuple[int, int]]) -> tuple[Streams, float]:
    """The state and accuracy of a federation in which only these updates ever counted, by (round, client)."""
    experiment = build(config)
    memory: dict[int, Streams] = {}
    engine = LocalEngine(experiment.party(memory), 1)
    state = experiment.first_state()
    with tuned_processor():
        for number in range(1, config.rounds + 1):
            cohort = experiment.population.asked(number)
            flow = play(experiment.algorithm, experiment.wire, state, number, cohort)
            requests = [r for r in next(flow) if (number, r.client) in counted]
            try:
                flow.send(engine.exchange(requests))
            except StopIteration as stop:
                state = stop.value.state
        params = experiment.global_params(state)
        metrics = evaluate(experiment.model, params, experiment.measured_on, experiment.mean, experiment.std)
    return state, metrics["accuracy"]

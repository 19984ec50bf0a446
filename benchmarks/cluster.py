"""What carrying a cohort to Ray actors costs a round, against serving it in process, and what more actors bring.

    python benchmarks/cluster.py [--repetitions 5] [--out benchmarks/results]

Three settings: few clients with much work (what a cluster is for), many clients with almost none (what carrying
costs), and full models as frames (what bytes cost). Each round is played whole: downloads are written, the cohort
answers, every upload is read and checked, the server steps. In process, one actor and two actors take turns, and do
the same work in the same chunks; that they come to the same state is checked first. Processor seconds are those of
this process and of the actors; Ray's own processes are not counted.

How long uploads take from an actor to here is measured apart, by an actor that only gives back as many bytes. With
the time to read them it is all that sending sums instead of uploads could save.

On a machine with few processors two actors share them with this process, with Ray and with each other: the numbers
show overhead, and no more than whether two actors are nearer to twice than to once. They say nothing of a network.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from document import write

from fedadapt.engines.engine import Engine
from fedadapt.engines.local import LocalEngine
from fedadapt.engines.ray import Need, RayEngine
from fedadapt.experiment import make_config
from fedadapt.experiment.blueprint import draw_blueprint
from fedadapt.experiment.build import Experiment, build
from fedadapt.federation.round import play
from fedadapt.params import Params
from fedadapt.registry import create

ACTORS = (1, 2)

SETTINGS: dict[str, dict[str, Any]] = {
    "much work": {
        "backbone": {"name": "resnet20"},
        "data": {"num_clients": 10, "limit": 320, "source": {"name": "digits", "size": 32}},
        "engine": {"chunk": 5},
    },
    "many clients": {
        "backbone": {"name": "resnet20", "width": 0.25},
        "data": {"num_clients": 100, "limit": 200, "source": {"name": "digits", "size": 12}},
        "engine": {"chunk": 50},
        "train": {"batch_size": 2},
    },
    "large frames": {
        "backbone": {"name": "resnet26"},
        "adapter": {"name": "full"},
        "data": {"num_clients": 6, "limit": 12, "source": {"name": "digits", "size": 16}},
        "engine": {"chunk": 1},
        "train": {"batch_size": 2},
    },
}


class Echo:
    """Gives back so many bytes, as an actor gives back uploads."""

    def give(self, lengths: list[int]) -> list[bytes]:
        """Zeros of these lengths."""
        return [bytes(length) for length in lengths]


class Round:
    """The first round of a setting, to be played again and again.

    Args:
        experiment: the setting.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.state = experiment.first_state()
        self.cohort = list(range(experiment.config.data.num_clients))

    def play(self, engine: Engine) -> tuple[Params, dict[str, float], list[int]]:
        """The model after the round, seconds of its parts, and the lengths of the uploads."""
        elsewhere = engine.cpu_s
        cpu, begun = time.process_time(), time.perf_counter()
        flow = play(self.experiment.algorithm, self.experiment.wire, self.state, 1, self.cohort)
        requests = next(flow)
        asked = time.perf_counter()
        replies = engine.exchange(requests)
        answered = time.perf_counter()
        lengths = [len(reply.frame) for reply in replies]
        try:
            flow.send(replies)
        except StopIteration as stop:
            played = stop.value
        ended = time.perf_counter()
        parts = {
            "wall_s": ended - begun,
            "driver_s": (asked - begun) + (ended - answered),
            "cpu_s": time.process_time() - cpu + engine.cpu_s - elsewhere,
        }
        return played.state["model"], parts, lengths


@contextmanager
def ways(experiment: Experiment) -> Iterator[dict[str, tuple[Engine, float]]]:
    """Each way to serve the cohort, with the seconds it took to get ready; they live side by side."""
    chunk = experiment.config.engine.chunk
    made: dict[str, tuple[Engine, float]] = {"in process": (LocalEngine(experiment.party({}), chunk), 0.0)}
    for actors in ACTORS:
        begun = time.perf_counter()
        engine = RayEngine(experiment.party({}), draw_blueprint(experiment), Need(1, 0), actors, chunk)
        made[f"{actors} actor{'s' * (actors > 1)}"] = engine, time.perf_counter() - begun
    try:
        yield made
    finally:
        for engine, _ in made.values():
            if isinstance(engine, RayEngine):
                engine.close()


def measure(name: str, repetitions: int) -> dict[str, Any]:
    """All ways in one setting."""
    experiment = build(make_config({"name": "cluster"} | SETTINGS[name]))
    round_ = Round(experiment)
    with ways(experiment) as made:
        # Everybody has played once before anything counts, and all actors are there; the states must agree.
        expected, _, lengths = round_.play(made["in process"][0])
        for label, (engine, _) in made.items():
            for _ in ACTORS:
                state, _, _ = round_.play(engine)
            torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-6, msg=f"{name}: {label} differs")
        passes: dict[str, list[dict[str, float]]] = {label: [] for label in made}
        for repetition in range(repetitions):
            labels = list(made)
            turn = repetition % len(labels)
            for label in labels[turn:] + labels[:turn]:
                passes[label].append(round_.play(made[label][0])[1])
        carrying = carry(lengths, repetitions)
    here = passes["in process"]
    return {
        "setting": name,
        "config": SETTINGS[name],
        "clients": len(lengths),
        "bytes_up": sum(lengths),
        "uploads_to_driver_s": carrying,
        "ways": {
            label: {
                "ready_s": made[label][1],
                "rounds": own,
                "times_in_process": {
                    key: statistics.median(
                        mine[key] / theirs[key] for mine, theirs in zip(own, here, strict=True)
                    )
                    for key in ("wall_s", "cpu_s")
                },
                "overhead_s": statistics.median(
                    mine["wall_s"] - theirs["wall_s"] for mine, theirs in zip(own, here, strict=True)
                ),
            }
            for label, own in passes.items()
        },
    }


def carry(lengths: list[int], repetitions: int) -> list[float]:
    """Seconds that so many bytes take from an actor to here."""
    actor: Any = ray.remote(num_cpus=0)(Echo).remote()
    ray.get(actor.give.remote([1]))
    seconds = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        ray.get(actor.give.remote(lengths))
        seconds.append(time.perf_counter() - begun)
    ray.kill(actor)
    return seconds


def show(result: dict[str, Any]) -> None:
    """One table."""
    here = result["ways"]["in process"]["rounds"]
    wall, driver = (statistics.median(one[key] for one in here) for key in ("wall_s", "driver_s"))
    carried = statistics.median(result["uploads_to_driver_s"])
    print(f"\n{result['setting']}: {result['clients']} clients, {result['bytes_up'] / 2**20:.1f} MiB up")
    print(f"  in process {wall:.3f} s a round; {driver:.3f} s of it write and read frames and step")
    print(f"  the uploads take {carried:.3f} s from an actor to here")
    print(f"  {'way':<12}{'wall s':>9}{'x wall':>8}{'x CPU':>8}{'over s':>9}{'ready s':>9}")
    for label, way in result["ways"].items():
        ratios = way["times_in_process"]
        median = statistics.median(one["wall_s"] for one in way["rounds"])
        print(
            f"  {label:<12}{median:>9.3f}{ratios['wall_s']:>8.2f}{ratios['cpu_s']:>8.2f}"
            f"{way['overhead_s']:>9.3f}{way['ready_s']:>9.1f}"
        )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    arguments = parser.parse_args()
    # Ray makes its actors nicer than this process, which would be measured as well.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    begun = time.perf_counter()
    with create("engine", "ray", {"address": "local", "actors": sum(ACTORS)}):
        ray_ready_s = time.perf_counter() - begun
        results = []
        for name in arguments.settings:
            results.append(measure(name, arguments.repetitions))
            show(results[-1])
    write(arguments.out, results, packages=("ray",), processors=os.cpu_count(), ray_ready_s=ray_ready_s)


if __name__ == "__main__":
    main()

"""A round in fedadapt, in Flower's Ray simulation, in pfl-research and in a plain PyTorch loop, taking turns.

``python benchmarks/simulation.py --setup`` makes an environment for each peer from its pinned list, and
``python benchmarks/simulation.py --works W1 W2`` measures. All do the same work, see `peers/work.py`: a process
each, started once, in which the first round is start-up and reported apart, and which then plays a round when
it is told to. In every repetition each plays one round, in turning order, while the others wait; what is
compared is the ratio of two rounds of one repetition. A peer that cannot run is reported with the reason.
Results of one machine are in one file, so the works can be measured one at a time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from fedadapt.experiment.build import processor

HERE = Path(__file__).parent
ROOT = HERE.parent
VENVS = ROOT / ".peers"
WORKS = ("W1", "W2", "W3", "W4, 10 x 10 kB", "W4, 100 x 10 kB", "W4, 10 x 44 MB")

# Script, the environment it needs, and its own arguments.
SIMULATORS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "fedadapt": ("ours.py", None, ()),
    "plain": ("plain.py", None, ()),
    "pfl": ("pfl_simulation.py", "pfl", ()),
    "flower": ("flower_simulation.py", "flower", ()),
    "flower-2": ("flower_simulation.py", "flower", ("--cpus", "2")),
}
MARGIN = 0.6
"""The part of a committed ratio that is still no regression: machines differ, and neighbours disturb."""

DISTRIBUTIONS = ("torch", "numpy", "flwr", "ray", "pfl")


class Unavailable(Exception):
    """A simulator does not run here."""


class Player:
    """A simulator's process.

    Args:
        name: ``SIMULATOR/PRECISION``.
        work: what a round is.
        share: see `peers/work.py`.
        threads: to compute with; Flower's clients take as many as each has processors.
    """

    def __init__(self, name: str, work: str, share: int, threads: int = 1) -> None:
        simulator, _, precision = name.partition("/")
        script, venv, own = SIMULATORS[simulator]
        self.python = str(VENVS / venv / "bin" / "python") if venv else sys.executable
        if not Path(self.python).exists():
            raise Unavailable(f"no environment {VENVS.name}/{venv}; make it with --setup")
        command = [
            self.python,
            str(HERE / "peers" / script),
            work,
            precision or "fp32",
            "--share",
            str(share),
            *own,
        ]
        own_threads = str({"flower": 1, "flower-2": 2}.get(simulator, threads))
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": own_threads}
        environment["BENCHMARK_THREADS"] = own_threads
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.startup_s: float = self._report()["startup_s"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def play(self) -> dict[str, float]:
        """One round: its wall and processor seconds."""
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        return self._report()

    def versions(self) -> dict[str, str]:
        """Of what it is made of."""
        code = f"import importlib.metadata as m, json; have = {{d.name for d in m.distributions()}}; print(json.dumps({{n: m.version(n) for n in {DISTRIBUTIONS!r} if n in have}}))"
        return json.loads(
            subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True).stdout
        )

    def _report(self) -> dict[str, float]:
        for line in self.process.stdout:
            if line.startswith("REPORT "):
                return json.loads(line.removeprefix("REPORT "))
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        raise Unavailable(lines[-1] if lines else "it ended without a word")


def measure(work: str, names: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """All simulators on one work."""
    players: dict[str, Player] = {}
    result: dict[str, Any] = {
        "work": work,
        "share": arguments.share,
        "threads": arguments.threads,
        "rounds": {},
        "unavailable": {},
    }
    try:
        for name in names:
            try:
                players[name] = Player(name, work, arguments.share, arguments.threads)
            except Unavailable as error:
                result["unavailable"][name] = str(error)
                print(f"{work}: {name} is left out: {error}")
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in players}
        for repetition in range(arguments.pairs):
            order = list(players)
            turn = repetition % len(order)
            for name in order[turn:] + order[:turn]:
                rounds[name].append(players[name].play())
        result |= {
            "rounds": rounds,
            "startup_s": {name: player.startup_s for name, player in players.items()},
            "versions": {name: player.versions() for name, player in players.items()},
        }
    finally:
        for player in players.values():
            with player:
                pass
    result["times"] = {
        ours: {
            theirs: {
                clock: statistics.median(
                    a[clock] / max(b[clock], 0.01) for a, b in zip(rounds[theirs], rounds[ours], strict=True)
                )
                for clock in ("wall_s", "cpu_s")
            }
            for theirs in rounds
            if not theirs.startswith("fedadapt")
        }
        for ours in rounds
        if ours.startswith("fedadapt")
    }
    return result


def show(result: dict[str, Any]) -> None:
    """One table."""
    print(f"\n{result['work']}: medians of {max(map(len, result['rounds'].values()))} rounds")
    print(f"{'simulator':<18}{'wall s':>9}{'CPU s':>9}{'start s':>9}   times of fedadapt (wall, CPU)")
    for name, rounds in result["rounds"].items():
        wall, cpu = (statistics.median(r[clock] for r in rounds) for clock in ("wall_s", "cpu_s"))
        ratios = "".join(
            f"   {ours.partition('/')[2]}: {versus[name]['wall_s']:.2f}, {versus[name]['cpu_s']:.2f}"
            for ours, versus in result["times"].items()
            if name in versus
        )
        print(f"{name:<18}{wall:>9.3f}{cpu:>9.3f}{result['startup_s'][name]:>9.1f}{ratios}")


def regressions(fresh: dict[str, Any], committed: list[dict[str, Any]]) -> list[str]:
    """Where the fresh ratios of processor time are below what was committed by more than the margin."""
    before = next((r["times"] for r in committed if r["work"] == fresh["work"]), {})
    return [
        f"{fresh['work']}: {ours} is {times['cpu_s']:.2f}x {theirs}, committed {was['cpu_s']:.2f}x"
        for ours, versus in fresh["times"].items()
        for theirs, times in versus.items()
        if (was := before.get(ours, {}).get(theirs)) and times["cpu_s"] < MARGIN * was["cpu_s"]
    ]


def setup(*, share_torch: bool) -> None:
    """Makes the peers' environments."""
    for requirements in sorted((HERE / "peers").glob("*.txt")):
        venv = VENVS / requirements.stem
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        if share_torch:
            host = Path(importlib.metadata.distribution("torch").locate_file(""))
            packages = next((venv / "lib").glob("python*/site-packages"))
            (packages / "host.pth").write_text(f"{host}\n", encoding="utf-8")
        python = str(venv / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)


def machine_file(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The file of this machine, and the results in it."""
    path = folder / f"simulation_{re.sub(r'[^a-z0-9]+', '-', processor().lower()).strip('-')}.json"
    return path, json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []


def write(result: dict[str, Any], folder: Path) -> Path:
    """Puts a result in this machine's file, in the place of an older one of the same work."""
    path, old = machine_file(folder)
    document = {
        "hardware": {
            "name": processor(),
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
        },
        "python": platform.python_version(),
        "results": sorted(
            [r for r in old if r["work"] != result["work"]] + [result], key=lambda r: r["work"]
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--setup", action="store_true", help="make the peers' environments in .peers, and stop"
    )
    parser.add_argument(
        "--share-torch",
        action="store_true",
        help="let them use this environment's packages, torch above all, where they have none of their own: "
        "saves 6 GB, and all use one version",
    )
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument(
        "--simulators",
        nargs="+",
        default=["fedadapt/fp32", "fedadapt/bf16", "plain/fp32", "pfl/fp32", "flower/fp32"],
        help=f"NAME/PRECISION, of {', '.join(SIMULATORS)} and fp32, bf16",
    )
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each")
    parser.add_argument("--share", type=int, default=1, help="do one in so many of the clients or samples")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of each process, but Flower's; results of several want an --out of their own",
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON file")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if slower than committed")
    return parser.parse_args()


def main() -> None:
    """Measures, prints and writes."""
    arguments = parse()
    if arguments.setup:
        setup(share_torch=arguments.share_torch)
        return
    slower: list[str] = []
    for work in arguments.works:
        # Nothing is computed in the floor, so precision means nothing, and only Flower has messages to compare.
        names = ["fedadapt/fp32", "flower/fp32"] if work.startswith("W4") else arguments.simulators
        began = time.perf_counter()
        result = measure(work, names, arguments)
        result |= {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "took_s": time.perf_counter() - began,
        }
        show(result)
        if arguments.check:
            slower += regressions(result, machine_file(arguments.out)[1])
        else:
            print(f"written: {write(result, arguments.out)}")
    if slower:
        sys.exit("\n".join(slower))


if __name__ == "__main__":
    main()

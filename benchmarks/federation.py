"""What a federation costs beyond training: on loopback, and over a slow line between two hosts.

``PYTHONPATH=src python benchmarks/federation.py loopback OUT.json`` runs one site and its simulation: seconds of a
round and bytes beyond the payload. ``... network OUT.json`` (as root) has the server on one host and two sites on
another, 10 Mbit/s and 100 ms there and back between them, and gives accuracy by time: full fine-tuning, adapters,
and small adapters with a codec. ``... draw network.json OUT.svg`` draws the latter, for light and for dark pages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from line import ADDRESSES, SERVER, SITES, Line, inside

from fedadapt.engines.flower.processes import free_port
from fedadapt.experiment.build import processor
from fedadapt.runs.records import Direction
from fedadapt.runs.store import RunStore

FEDADAPT = [sys.executable, "-c", "from fedadapt.cli import main; main()"]
MEGABITS, ROUND_TRIP_S = 10, 0.1

SITE = 'share = true\n[source]\nname = "digits"\nsize = 16\n'
RECIPE = """
seed = 0
rounds = {rounds}
[backbone]
name = "resnet26"
[data]
num_clients = {sites}
limit = {images}
source = {{ name = "digits", size = 16 }}
augment = {{ pad = 1, flip = false }}
[train]
batch_size = 16
schedule = "cosine"
"""

VARIANTS = {
    "full fine-tuning": ["adapter=full", "train.lr=0.01", "rounds=3"],
    "T0: parallel adapters, float32": ["adapter=parallel", "train.lr=0.05"],
    "T1: seeded adapters of rank 32, int8 > zstd": [
        'adapter={name="seeded",rank=32}',
        "codec=int8 > zstd",
        "train.lr=0.05",
    ],
}

POLLING = {
    "SuperNode asks for messages, when it had none": "3 s",
    "SuperNode looks for its app's reply": "0.5 s",
    "SuperExec asks for work": "1 s, FLWR_SUPEREXEC_TASK_POLL_INTERVAL",
    "fedadapt's server looks for replies": "0.5 s",
}
"""Where a message waits although everybody is ready, in Flower 1.41 and in our engine."""

Place = Callable[[list[str]], list[str]]


class Federation:
    """A server and its sites as processes, with TLS and node keys.

    Args:
        folder: where everything is.
        recipe: the run file.
        settings: of the run file.
        sites: how many.
        line: the hosts are those of this line; None puts all on loopback.
    """

    def __init__(
        self, folder: Path, recipe: Path, settings: Sequence[str], sites: int, line: Line | None
    ) -> None:
        self.folder, self.recipe, self.settings, self.sites = folder, recipe, list(settings), sites
        self.host = ADDRESSES[SERVER] if line else "127.0.0.1"
        self.at_server: Place = (lambda command: inside(SERVER, command)) if line else list
        self.at_sites: Place = (lambda command: inside(SITES, command)) if line else list
        self.run = folder / "runs" / recipe.stem
        folder.mkdir(parents=True)
        self._make_keys()

    def play(self) -> None:
        """Returns when the run is complete."""
        port = free_port()
        keys = [f"--site={site}={self.folder}/{site}/key.pub" for site in range(self.sites)]
        options = [f"--set={setting}" for setting in self.settings]
        serve = [
            "serve",
            str(self.recipe),
            f"--runs={self.folder / 'runs'}",
            f"--host={self.host}",
            f"--port={port}",
        ]
        tls = [f"--tls-cert={self.folder}/server.pem", f"--tls-key={self.folder}/server.key"]
        with self._started("server", self.at_server([*FEDADAPT, *serve, *tls, *keys, *options])) as server:
            _wait_until(lambda: "open to sites" in (self.folder / "server.out").read_text(), server)
            joined = [
                self._started(f"site{site}", self.at_sites([*FEDADAPT, *self._join(site, port)]))
                for site in range(self.sites)
            ]
            with _all(joined):
                code = server.wait()
        if code:
            raise SystemExit((self.folder / "server.out").read_text())

    def counted_by_flower(self) -> dict[str, int]:
        """What Flower says it moved."""
        traffic = json.loads((self.run / "flower" / "traffic.json").read_text()).values()
        return {
            "download_bytes": sum(run["outbound-bytes"] for run in traffic),
            "upload_bytes": sum(run["inbound-bytes"] for run in traffic),
        }

    def seconds_by_round(self) -> dict[int, float]:
        """When each round was on disk, from when the last site was there, by the server's log (whole seconds)."""
        log = (self.run / "server.log").read_text().splitlines()
        lines = [(datetime.fromisoformat(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in log]
        # A site that is greeted again has been there before.
        came: dict[str, datetime] = {}
        for stamp, said in lines:
            if here := re.match(r"client (\d+) is here", said):
                came.setdefault(here[1], stamp)
        begun = max(came.values())
        return {
            int(said.split()[1]): (stamp - begun).total_seconds()
            for stamp, said in lines
            if re.match(r"round \d+ of", said)
        }

    def _join(self, site: int, port: int) -> list[str]:
        place = self.folder / str(site)
        return [
            "join", f"{self.host}:{port}", f"--data={place}/site.toml", f"--ca={self.folder}/ca.pem", f"--key={place}/key"
        ]  # fmt: skip

    def _make_keys(self) -> None:
        folder = self.folder
        (folder / "names").write_text(f"subjectAltName=IP:{self.host}\n")
        curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        for line in (
            f"openssl req -x509 {curve} -days 30 -subj /CN=ca -keyout {folder}/ca.key -out {folder}/ca.pem",
            f"openssl req {curve} -subj /CN=server -keyout {folder}/server.key -out {folder}/server.csr",
            (
                f"openssl x509 -req -in {folder}/server.csr -CA {folder}/ca.pem -CAkey {folder}/ca.key -days 30 "
                f"-CAcreateserial -out {folder}/server.pem -extfile {folder}/names"
            ),
        ):
            subprocess.run(line.split(), check=True, capture_output=True)
        for site in range(self.sites):
            place = folder / str(site)
            place.mkdir()
            (place / "site.toml").write_text(SITE)
            command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(place / "key")]
            subprocess.run(command, check=True)

    @contextmanager
    def _started(self, name: str, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


@contextmanager
def _all(contexts: Sequence[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        if process.poll() is not None:
            raise SystemExit("the server ended before it was open to sites")
        time.sleep(0.2)


def rounds_of(run: Path) -> list[dict[str, float | None]]:
    """Accuracy, seconds and payload of every round of a run, from its directory."""
    with RunStore.read(run) as store:
        moved = store.ledger_totals()
        return [
            {
                "round": summary.round,
                "accuracy": summary.metrics.get("accuracy"),
                "wall_s": summary.wall_s,
                "cpu_s": summary.cpu_s,
                **{
                    f"{way}_bytes": sum(
                        t.num_bytes for t in moved if (t.round, t.direction) == (summary.round, way)
                    )
                    for way in Direction
                },
            }
            for summary in store.rounds()
        ]


def loopback(folder: Path, repetitions: int) -> dict[str, Any]:
    """One site on this machine and the simulation of it, by turns: what is left of a round without training."""
    recipe = _recipe(folder, "loopback", rounds=6, sites=1, images=100)
    settings = VARIANTS["T0: parallel adapters, float32"]
    found = []
    for number in range(repetitions):
        federation = Federation(folder / f"federation{number}", recipe, settings, 1, None)
        federation.play()
        simulated = folder / f"simulation{number}"
        options = [f"--set={setting}" for setting in settings]
        subprocess.run(
            [*FEDADAPT, "run", str(recipe), f"--runs={simulated}", *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        real, alone = rounds_of(federation.run), rounds_of(simulated / recipe.stem)
        found.append({"federation": real, "simulation": alone, "flower": federation.counted_by_flower()})
    # The first round waits for the site to come.
    real, alone = (
        [r["wall_s"] for one in found for r in one[kind] if r["round"] > 1]
        for kind in ("federation", "simulation")
    )
    beyond = [one - statistics.median(alone) for one in real]
    first = found[0]
    payload = {f"{way}_bytes": sum(r[f"{way}_bytes"] for r in first["federation"]) for way in Direction}
    return {
        "settings": settings,
        "round_s": {
            "federation": _spread(real),
            "simulation": _spread(alone),
            "beyond training": _spread(beyond),
        },
        "bytes": {
            "payload": payload,
            "flower": first["flower"],
            "share beyond payload": {way: first["flower"][way] / payload[way] - 1 for way in payload},
        },
        "polling": POLLING,
        "runs": found,
    }


def network(folder: Path, only: Sequence[str]) -> dict[str, Any]:
    """Two sites across the slow line, for each variant: when which accuracy was there, and what the line carried."""
    variants = {}
    for number, (name, settings) in enumerate(VARIANTS.items()):
        if only and not any(name.startswith(prefix) for prefix in only):
            continue
        recipe = _recipe(folder, f"variant{number}", rounds=6, sites=2, images=160)
        with Line(MEGABITS, ROUND_TRIP_S) as line:
            federation = Federation(folder / f"federation{number}", recipe, settings, 2, line)
            federation.play()
            carried = {
                "download_bytes": line.bytes_out_of(SERVER),
                "upload_bytes": line.bytes_out_of(SITES),
            }
        seconds = federation.seconds_by_round()
        rounds = [r | {"since_start_s": seconds.get(r["round"], 0.0)} for r in rounds_of(federation.run)]
        variants[name] = {
            "settings": settings,
            "rounds": rounds,
            "flower": federation.counted_by_flower(),
            "line": carried,
            "load_average": os.getloadavg(),
        }
        print(f"{name}: {[(round(r['since_start_s']), r['accuracy']) for r in rounds]}", flush=True)
    return {"megabits": MEGABITS, "round_trip_s": ROUND_TRIP_S, "variants": variants}


def time_to(rounds: Sequence[Mapping[str, Any]], accuracy: float) -> float | None:
    """Seconds after which a run first had `accuracy`."""
    return next((r["since_start_s"] for r in rounds if (r["accuracy"] or 0) >= accuracy), None)


def draw(measured: Mapping[str, Any], out: Path) -> None:
    """Accuracy by time on a logarithmic axis, as ``OUT`` for light and ``OUT-dark`` for dark pages."""
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "fedadapt"
    for suffix, text, grid, colours in (
        ("", "#1b1f24", "#e8ebee", ("#59636e", "#0072B2", "#D55E00")),
        ("-dark", "#e7eaee", "#262c33", ("#9aa4af", "#56B4E9", "#E69F00")),
    ):
        figure, axes = plt.subplots(figsize=(7, 4))
        for (name, variant), colour in zip(measured["variants"].items(), colours, strict=False):
            rounds = [r for r in variant["rounds"] if r["round"]]
            axes.plot(
                [r["since_start_s"] for r in rounds],
                [100 * r["accuracy"] for r in rounds],
                marker="o", markersize=4, color=colour, label=name,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("seconds since the sites were there", color=text)
        axes.set_ylabel("accuracy, %", color=text)
        axes.grid(color=grid)
        axes.set_axisbelow(True)
        axes.tick_params(colors=text, which="both")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.legend(frameon=False, labelcolor=text, loc="lower right")
        file = out.with_name(f"{out.stem}{suffix}{out.suffix}")
        figure.savefig(file, transparent=True, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


def _recipe(folder: Path, name: str, **values: int) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(f'name = "{name}"\n{RECIPE.format(**values)}')
    return file


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "lowest": ordered[0],
        "highest": ordered[-1],
        "count": len(ordered),
    }


def _about(arguments: Sequence[str]) -> dict[str, Any]:
    names = ("fedadapt", "flwr", "torch")
    return {
        "command": f"PYTHONPATH=src OMP_NUM_THREADS=1 python benchmarks/federation.py {' '.join(arguments)}",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in names}},
    }


def main(arguments: Sequence[str]) -> None:
    """Measures or draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("loopback", "network", "draw"))
    parser.add_argument("files", nargs="+", type=Path, help="the JSON file; for draw also the picture")
    parser.add_argument("--only", action="append", default=[], help="variants whose name begins so")
    parser.add_argument("--repetitions", type=int, default=1)
    asked = parser.parse_args(arguments)
    if asked.what == "draw":
        draw(json.loads(asked.files[0].read_text()), asked.files[1])
        return
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        measured = (
            loopback(place, asked.repetitions) if asked.what == "loopback" else network(place, asked.only)
        )
    about = _about(arguments) | {"load_average_before": before}
    if asked.only and asked.files[0].exists():
        # Variants that were measured before stay.
        measured["variants"] = json.loads(asked.files[0].read_text())["variants"] | measured["variants"]
    asked.files[0].write_text(json.dumps({"about": about, **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""How fast codecs pack and unpack, and into how much, on one core.

``OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/codecs.py`` trains the adapters of three clients for a few
rounds (or reads the updates of an earlier call from ``--updates``), packs what they would send, repeated up to
``--values`` values, and writes a JSON file. Speeds are megabytes (10**6) of 32-bit floats a second; ratios and
losses are of the updates themselves, a section a group as in a frame.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from document import write

from fedadapt.codecs import Key, make_codec
from fedadapt.engines.local import LocalEngine
from fedadapt.experiment import load_config
from fedadapt.experiment.build import build
from fedadapt.federation.frame import Kind
from fedadapt.federation.round import play
from fedadapt.params import Params, norm
from fedadapt.seeds import Seeds

CODECS = (
    "float32", "float16", "bfloat16", "zstd", "int8", "int8 > zstd", "int8(rounding=nearest) > zstd",
    "rotate > int8 > zstd", "int4", "int4 > zstd", "rotate > int4", "rotate > int4 > zstd", "int2 > zstd",
    "rotate > int2", "ternary > zstd", "int1", "int1(rounding=nearest)", "rotate > int1",
    "topk(fraction=0.01) > int8 > zstd", "topk(fraction=0.1) > int4 > zstd", "randomk(fraction=0.1) > int8",
    "mask(period=10) > int8 > zstd", "lowrank(rank=4) > int8 > zstd",
    "rotate > int2(rounding=nearest) > zstd", "rotate > int2(block=128, rounding=nearest) > zstd",
    "rotate > sparse_ternary(keep=0.2, gain=1) > zstd", "rotate > sparse_ternary(keep=0.17) > zstd",
    "lowrank(rank=4) > int4(block=16, rounding=nearest) > zstd", "lowrank(rank=8) > int8 > zstd",
    "rotate > topk(fraction=0.15) > int1(rounding=nearest) > zstd",
    "rotate > topk(fraction=0.1) > int1(rounding=nearest) > zstd",
)  # fmt: skip
RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart-adapters.toml"


def train_updates(rounds: int) -> dict[str, np.ndarray]:
    """The uploads of three clients in the first and the last round, by ``round/client/group/name``."""
    experiment = build(load_config(RECIPE, ["data.num_clients=3", "data.limit=300"]))
    engine, state = LocalEngine(experiment.party({})), experiment.first_state()
    found = {}
    for number in range(1, rounds + 1):
        flow = play(experiment.algorithm, experiment.wire, state, number, [0, 1, 2])
        replies = engine.exchange(next(flow))
        for reply in replies if number in (1, rounds) else ():
            message = experiment.wire.read(reply.frame, Kind.UPLOAD, number, reply.client, ("delta",), 3)
            for name, tensor in message.streams["delta"].items():
                found[f"{number}/{reply.client}/{experiment.model.groups[name]}/{name}"] = tensor.numpy()
        try:
            flow.send(replies)
        except StopIteration as stop:
            state = stop.value.state
    return found


def sections(updates: dict[str, np.ndarray]) -> dict[Key, Params]:
    """The updates as sections, each with the key of its message."""
    made: dict[Key, Params] = {}
    for path, values in updates.items():
        number, client, group, name = path.split("/", 3)
        key = Key(Seeds(0), f"upload/delta/{group}", int(number), int(client))
        made.setdefault(key, {})[name] = torch.from_numpy(values)
    return made


def ratio(name: str, made: dict[Key, Params]) -> dict[str, float]:
    """Bits a value, how many times smaller than fp32, and the share of the squared norm that is lost."""
    codec, num_bytes, lost, whole = make_codec(name), 0, 0.0, 0.0
    for key, params in made.items():
        data = codec.encode(params, key)
        back = codec.decode(data, {n: t.shape for n, t in params.items()}, key)
        num_bytes += len(data)
        lost += norm({n: back[n] - t for n, t in params.items()}) ** 2
        whole += norm(params) ** 2
    num_values = sum(tensor.numel() for params in made.values() for tensor in params.values())
    return {
        "bits_a_value": 8 * num_bytes / num_values,
        "times_smaller": 4 * num_values / num_bytes,
        "lost_share": lost / whole,
    }


def speed(name: str, params: Params, repetitions: int) -> dict[str, float]:
    """Megabytes of fp32 a second, each way: median and best."""
    codec, key = make_codec(name), Key(Seeds(0), "benchmark")
    layout = {n: t.shape for n, t in params.items()}
    megabytes = 4e-6 * sum(tensor.numel() for tensor in params.values())
    ways: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(repetitions):
        begun = time.perf_counter()
        data = codec.encode(params, key)
        ended = time.perf_counter()
        codec.decode(data, layout, key)
        ways["encode"].append(megabytes / (ended - begun))
        ways["decode"].append(megabytes / (time.perf_counter() - ended))
    both = [1 / (1 / up + 1 / down) for up, down in zip(ways["encode"], ways["decode"], strict=True)]
    return {
        f"{way}_mb_s{suffix}": pick(rates)
        for way, rates in (*ways.items(), ("both", both))
        for suffix, pick in (("", statistics.median), ("_best", max))
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file"
    )
    parser.add_argument("--updates", type=Path, help="an .npz of updates; made if it is not there")
    parser.add_argument("--rounds", type=int, default=3, help="of training for the updates")
    parser.add_argument("--values", type=int, default=4_000_000, help="about how many to time")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--note", default="", help="about the machine, kept with the result")
    return parser.parse_args()


def main() -> None:
    """Measures, prints and writes."""
    arguments = parse()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if arguments.updates and arguments.updates.exists():
        stored = np.load(arguments.updates)
        updates = {name: stored[name] for name in stored.files}
    else:
        updates = train_updates(arguments.rounds)
        if arguments.updates:
            np.savez(arguments.updates, **updates)
    made = sections(updates)
    adapters = [(key, params) for key, params in made.items() if key.purpose.endswith("/adapter")]
    timed: Params = {}
    while sum(tensor.numel() for tensor in timed.values()) < arguments.values:
        key, params = adapters[len(timed) % len(adapters)]
        timed |= {f"{len(timed)}/{key.round}/{key.client}/{n}": t for n, t in params.items()}
    results: dict[str, Any] = {}
    print(f"{'codec':<36}{'bits':>7}{'x fp32':>8}{'lost':>8}{'enc MB/s':>10}{'dec MB/s':>10}")
    for name in CODECS:
        results[name] = ratio(name, made) | speed(name, timed, arguments.repetitions)
        found = results[name]
        print(
            f"{name:<36}{found['bits_a_value']:>7.3f}{found['times_smaller']:>8.1f}{found['lost_share']:>8.4f}"
            f"{found['encode_mb_s']:>10.0f}{found['decode_mb_s']:>10.0f}",
            flush=True,
        )
    write(
        arguments.out,
        results,
        packages=("numpy", "zstandard"),
        note=arguments.note,
        updates="recipes/quickstart-adapters.toml with data.num_clients=3, data.limit=300",
        settings={name: getattr(arguments, name) for name in ("rounds", "values", "repetitions")},
        timed_values=sum(tensor.numel() for tensor in timed.values()),
    )


if __name__ == "__main__":
    main()

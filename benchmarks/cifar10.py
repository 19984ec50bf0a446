"""Full fine-tuning against adapters on CIFAR-10, each at its own best learning rate.

``python benchmarks/cifar10.py [--runs RUNS] [--out docs/results/cifar10]``

For every trainable set the same small search: each rate of `RATES` for `SEARCH_ROUNDS` rounds on
`SEARCH_IMAGES` images, measured on a tenth of the training images held out for validation; the best one is
used for the full run, which is measured on the test set. Every run is a run directory: stopped at any instant,
the same command goes on. Writes ``results.json``, ``results.md`` and ``index.html``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from fedadapt.cli.progress import ProgressWatcher
from fedadapt.errors import RunError
from fedadapt.experiment import load_config, resume, run
from fedadapt.report.gather import summarise
from fedadapt.report.page import write_page
from fedadapt.report.tables import format_bytes

RECIPE = Path("recipes/cifar10.toml")
SETS = ("full", "parallel", "norm_head", "head")
RATES = (0.01, 0.03, 0.1)
SEARCH_ROUNDS = 3
SEARCH_IMAGES = 3000


def finish(folder: Path, name: str, settings: list[str]) -> Path:
    """Runs to the end what is not there yet."""
    path = folder / name
    with ProgressWatcher(Console(highlight=False)) as watcher:
        if (path / "run.sqlite").exists():
            try:
                return resume(path, watcher=watcher)
            except RunError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return path
        try:
            return run(load_config(RECIPE, [f"name={name}", *settings]), folder, watcher=watcher)
        except RunError as error:
            # A rate at which training diverges is a finding of the search, not a failure of the study.
            print(f"{name}: {error}", file=sys.stderr)
            return path


def search(folder: Path, adapter: str) -> dict[float, float]:
    """Validation accuracy of each rate after a short run; 0 where training diverged."""
    found = {}
    for rate in RATES:
        settings = [
            f"adapter={adapter}", f"train.lr={rate}", f"rounds={SEARCH_ROUNDS}", f"data.limit={SEARCH_IMAGES}",
            "data.validation_fraction=0.1", f"evaluate.every={SEARCH_ROUNDS}",
        ]  # fmt: skip
        summary = summarise(finish(folder, f"cifar10-search-{adapter}-{rate}", settings))
        found[rate] = (summary.accuracy or 0.0) if summary.rounds == SEARCH_ROUNDS else 0.0
    return found


def main() -> None:
    """Searches the rates, runs the federations, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/cifar10"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    arguments = parser.parse_args()
    rows, paths = [], []
    for adapter in arguments.sets:
        found = search(arguments.runs, adapter)
        best = max(found, key=lambda rate: found[rate])
        path = finish(arguments.runs, f"cifar10-{adapter}", [f"adapter={adapter}", f"train.lr={best}"])
        paths.append(path)
        summary = summarise(path)
        rows.append({**summary.as_json(), "lr": best, "search": {str(k): v for k, v in found.items()}})
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_page(paths, arguments.out / "index.html")
    manifest = summarise(paths[0]).manifest
    told = {
        "command": "python benchmarks/cifar10.py",
        "recipe": manifest["config"],
        "hardware": manifest["hardware"],
        "versions": manifest["versions"],
        "backbone": manifest["backbone"],
        "rows": rows,
    }
    (arguments.out / "results.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    most = max(row["upload_bytes"] + row["download_bytes"] for row in rows)
    lines = [
        "| trained and sent | rate | accuracy | best | moved | share |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        moved = row["upload_bytes"] + row["download_bytes"]
        lines.append(
            f"| {row['adapter']} | {row['lr']:g} | {100 * row['accuracy']:.2f} % | {100 * row['best_accuracy']:.2f} % "
            f"| {format_bytes(moved)} | {100 * moved / most:.2f} % |"
        )
    (arguments.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

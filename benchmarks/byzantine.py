"""Robust aggregation against a fifth of the clients lying, and what it costs where nobody does.

``python benchmarks/byzantine.py [--seeds 0 1] [--runs RUNS] [--out docs/results/byzantine]``

Every rule of `RULES` under every attack of `ATTACKS` and under none, for every seed: the clients' samples, the
attackers and all else follow from it. Every run is a run directory: stopped at any instant, the same command goes on.
A run whose model is no number any more counts with chance, one in ten. Writes ``results.json``,
``results.md`` and ``figure.svg``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from fedadapt.errors import RunError
from fedadapt.experiment import load_config, resume, run
from fedadapt.report.gather import RunSummary, summarise

RECIPE = Path("recipes/byzantine.toml")
RULES = {
    "fedavg": "fedavg",
    "median": "median",
    "trimmed_mean": "{ name = 'trimmed_mean', fraction = 0.2 }",
    "multi_krum": "{ name = 'multi_krum', attackers = 3 }",
}
ATTACKS = {
    "honest": "none",
    "sign_flip": "{ name = 'sign_flip', factor = 4.0, share = 0.2 }",
    "scaled": "{ name = 'scaled', factor = 10.0, share = 0.2 }",
    "label_flip": "{ name = 'label_flip', share = 0.2 }",
}
CHANCE = 0.1
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def finish(folder: Path, rule: str, attack: str, seed: int) -> RunSummary:
    """One run, to its end or to where its model is no model any more."""
    name = f"byzantine-{rule}-{attack}-{seed}"
    path = folder / name
    try:
        if (path / "run.sqlite").exists():
            resume(path)
        else:
            settings = (f"algorithm={RULES[rule]}", f"attack={ATTACKS[attack]}", f"seed={seed}")
            run(load_config(RECIPE, [f"name={name}", *settings]), folder)
    except RunError as error:
        print(f"{name}: {error}", file=sys.stderr)
    return summarise(path)


def table(accuracies: dict[str, dict[str, list[float]]]) -> str:
    """Mean accuracy by rule and attack, with the lowest and highest seed, as Markdown."""
    attacks = list(next(iter(accuracies.values())))
    lines = [f"| rule | {' | '.join(attacks)} |", "|---|" + "---|" * len(attacks)]
    for rule, by_attack in accuracies.items():
        cells = []
        for values in by_attack.values():
            low, high = 100 * min(values), 100 * max(values)
            cells.append(f"{100 * statistics.mean(values):.1f} % ({low:.1f} to {high:.1f})")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(accuracies: dict[str, dict[str, list[float]]], command: str) -> str:
    """The table and the figure with what they mean, as Markdown."""
    return (
        "# Robust rules against a fifth of the clients lying\n\n"
        "Accuracy after the last round: the mean over the seeds, in brackets the lowest and the highest.\n\n"
        f"{table(accuracies)}\n![The same, a mark a run](figure.svg)\n\n"
        f"Made by `{command}`; every run is in [results.json](results.json).\n"
    )


def draw(accuracies: dict[str, dict[str, list[float]]], out: Path) -> None:
    """A row a rule, a mark a run, a colour and a shape an attack."""
    figure = Figure(figsize=(7, 0.55 * len(accuracies) + 1.3), layout="constrained")
    axes = figure.subplots()
    for place, attack in enumerate(next(iter(accuracies.values()))):
        points = [
            (100 * value, row + 0.15 * (place - 1.5))
            for row, by_attack in enumerate(accuracies.values())
            for value in by_attack[attack]
        ]
        axes.scatter(
            *zip(*points, strict=True), label=attack, color=COLOURS[place], marker="osD^"[place], s=30
        )
    axes.set_yticks(range(len(accuracies)), list(accuracies))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy after the last round, %")
    axes.grid(axis="x", color="#d9dee3")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(loc="outside upper left", ncols=len(ATTACKS), frameon=False, handletextpad=0.1)
    # The same numbers make the same file.
    with rc_context({"svg.hashsalt": "fedadapt", "svg.fonttype": "none"}):
        figure.savefig(out, metadata={"Date": None})


def write(rows: list[dict[str, Any]], manifest: Mapping[str, Any], seeds: Sequence[int], out: Path) -> None:
    """Writes all that there is so far."""
    accuracies: dict[str, dict[str, list[float]]] = {rule: defaultdict(list) for rule in RULES}
    for row in rows:
        value = CHANCE if row["accuracy"] is None else row["accuracy"]
        accuracies[row["rule"]][row["attack"]].append(value)
    told = {
        "command": f"python benchmarks/byzantine.py --seeds {' '.join(map(str, seeds))}",
        "recipe": load_config(RECIPE).model_dump(mode="json"),
        "rules": RULES,
        "attacks": ATTACKS,
        "test_images": manifest["data"]["test"],
        "hardware": manifest["hardware"],
        "versions": manifest["versions"],
        "backbone": manifest["backbone"],
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    (out / "results.md").write_text(page(accuracies, str(told["command"])), encoding="utf-8")
    draw(accuracies, out / "figure.svg")
    print(table(accuracies), flush=True)


def main() -> None:
    """Runs what is missing, and writes the results whenever an attack is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/byzantine"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for attack in ATTACKS:
        for seed in arguments.seeds:
            for rule in RULES:
                summary = finish(arguments.runs, rule, attack, seed)
                rows.append(
                    {
                        "rule": rule,
                        "attack": attack,
                        "seed": seed,
                        "accuracy": summary.accuracy if summary.finished else None,
                        "rounds": summary.rounds,
                        "cpu_s": round(summary.cpu_s, 1),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
        write(rows, summary.manifest, arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()

"""Techniques, trainable sets and distributions in one grid, and one table.

``python benchmarks/grid.py [--data FILE.npz] [--runs RUNS] [--out docs/results/grid] [--set KEY=VALUE]...``

Ten techniques, each with full fine-tuning and with adapters, on five distributions of a small slice of data that has
domains: of an npz file such as PACS, or of the bundled digits in four styles. Techniques have their default options and
every trainable set one learning rate: the grid shows that all work together, it is no contest. Every run is a run
directory: stopped at any instant, the same command goes on. Writes ``results.json`` and ``results.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedadapt.data.dataset import Dataset, Split
from fedadapt.data.holdout import split_off
from fedadapt.errors import RunError
from fedadapt.experiment import load_config, resume, run
from fedadapt.registry import create
from fedadapt.report.gather import RunSummary, summarise
from fedadapt.report.tables import format_accuracy
from fedadapt.seeds import Seeds

RECIPE = Path("recipes/grid.toml")
TECHNIQUES = (
    "fedavg",
    "fedavgm",
    "fedprox",
    "scaffold",
    "fednova",
    "feddyn",
    "fedadam",
    "fedexp",
    "moon",
    "ditto",
)
SETS = {"full": 0.03, "parallel": 0.03}
"""Learning rates by what is trained."""

DISTRIBUTIONS = {
    "IID": "iid",
    "Dirichlet 0.5": "{ name = 'dirichlet', alpha = 0.5 }",
    "Dirichlet 0.1": "{ name = 'dirichlet', alpha = 0.1 }",
    "two-class shards": "{ name = 'shards', shards = 2 }",
    "domains": "domains",
}
STYLES = (
    lambda images: images,
    lambda images: 255 - images,
    lambda images: images.rot90(1, (2, 3)),
    lambda images: images // 3,
)
"""Domains of data that have none: as they are, inverted, turned by a quarter, faint."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    technique: str
    trained: str
    distribution: str

    @property
    def name(self) -> str:
        """Of its run directory."""
        words = (self.technique, self.trained, self.distribution)
        return "grid-" + "-".join(word.lower().replace(" ", "-") for word in words)


def cells(
    techniques: Sequence[str] = TECHNIQUES,
    sets: Sequence[str] = tuple(SETS),
    distributions: Sequence[str] = tuple(DISTRIBUTIONS),
) -> list[Cell]:
    """The grid, by distribution, so that a grid that is cut short has whole columns."""
    return [Cell(t, s, d) for d in distributions for s in sets for t in techniques]


def write_slice(dataset: Dataset, out: Path, train: int, test: int) -> None:
    """Writes so many images of a data set, stratified by class and domain, as an npz file; its domains are kept or made."""
    arrays: dict[str, Any] = {"class_names": np.array(dataset.class_names)}
    for part, split, wanted in (("train", dataset.train, train), ("test", dataset.test, test)):
        chosen = split if split.domains is not None else _styled(split)
        if wanted < len(chosen):
            _, chosen = split_off(chosen, wanted / len(chosen), Seeds(0), f"slice of {part}")
        named = {"x": chosen.images.permute(0, 2, 3, 1), "y": chosen.labels, "domain": chosen.domains}
        arrays |= {f"{name}_{part}": np.ascontiguousarray(column) for name, column in named.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **arrays)


def finish(cell: Cell, data: Path, folder: Path, settings: Sequence[str] = ()) -> RunSummary:
    """One run, to its end or to where it fails."""
    path = folder / cell.name
    try:
        if (path / "run.sqlite").exists():
            resume(path)
        else:
            own = [
                f"name={cell.name}",
                f"algorithm={cell.technique}",
                f"adapter={cell.trained}",
                f"train.lr={SETS[cell.trained]}",
                f"data.partition={DISTRIBUTIONS[cell.distribution]}",
                f"data.source={{ name = 'npz', path = '{data}' }}",
            ]
            run(load_config(RECIPE, [*own, *settings]), folder)
    except RunError as error:
        print(f"{cell.name}: {error}", file=sys.stderr)
    return summarise(path)


def as_row(cell: Cell, summary: RunSummary) -> dict[str, Any]:
    """What the results say of a run; accuracies of one that failed are None."""
    own = list(summary.client_accuracy.values()) if summary.finished else []
    return {
        "technique": cell.technique,
        "trained": cell.trained,
        "distribution": cell.distribution,
        "accuracy": summary.accuracy if summary.finished else None,
        "personal_accuracy": sum(own) / len(own) if own else None,
        "bytes": summary.total_bytes,
        "rounds": summary.rounds,
        "cpu_s": round(summary.cpu_s, 1),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy on the test set, and after it the mean of the clients' own, as Markdown."""
    columns = list(dict.fromkeys(row["distribution"] for row in rows))
    lines = [f"| technique | trained | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    found = {(row["technique"], row["trained"], row["distribution"]): row for row in rows}
    for technique, trained in dict.fromkeys((row["technique"], row["trained"]) for row in rows):
        by_column = [found.get((technique, trained, column)) for column in columns]
        texts = [
            ""
            if row is None
            else f"{format_accuracy(row['accuracy'])} ({format_accuracy(row['personal_accuracy'])})"
            for row in by_column
        ]
        lines.append(f"| {technique} | {trained} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def page(rows: Sequence[dict[str, Any]], command: str) -> str:
    """The table with what it means, as Markdown."""
    return (
        "# Ten techniques, two trainable sets, five distributions\n\n"
        "Accuracy of the global model on the test set; in brackets that of the models that clients would use on their own "
        "held-out samples, in the mean. One learning rate for each trainable set: it shows that all work together, and is "
        f"no contest.\n\n{table(rows)}\nMade by `{command}`; every run is in [results.json](results.json).\n"
    )


def main() -> None:
    """Runs what is missing, and writes the results whenever a distribution is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="an npz file with domains; without it digits in four styles"
    )
    parser.add_argument("--size", type=int, default=16, help="pixels")
    parser.add_argument("--images", type=int, nargs=2, default=[640, 320], help="of training and test")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/grid"))
    parser.add_argument("--set", action="append", default=[], dest="settings", help="as of fedadapt run")
    arguments = parser.parse_args()
    file = arguments.runs / "grid.npz"
    if not file.exists():
        options = {"size": arguments.size} | ({"path": str(arguments.data)} if arguments.data else {})
        write_slice(create("source", "npz" if arguments.data else "digits", options), file, *arguments.images)
    rows: list[dict[str, Any]] = []
    for distribution in DISTRIBUTIONS:
        for cell in cells(distributions=[distribution]):
            summary = finish(cell, file, arguments.runs, arguments.settings)
            rows.append(as_row(cell, summary))
            print(json.dumps(rows[-1]), flush=True)
        write(rows, summary.manifest, arguments, arguments.out)


def write(
    rows: Sequence[dict[str, Any]], manifest: Mapping[str, Any], asked: argparse.Namespace, out: Path
) -> None:
    """Writes all that there is so far."""
    words = ["python benchmarks/grid.py", *(["--data", str(asked.data)] if asked.data else [])]
    words += ["--size", asked.size, "--images", *asked.images]
    words += [word for setting in asked.settings for word in ("--set", f'"{setting}"')]
    told = {
        "command": " ".join(map(str, words)),
        "recipe": load_config(RECIPE, asked.settings).model_dump(mode="json"),
        "rates": SETS,
        "distributions": DISTRIBUTIONS,
        "backbone": manifest["backbone"],
        "hardware": manifest["hardware"],
        "versions": manifest["versions"],
        "rows": list(rows),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    (out / "results.md").write_text(page(rows, str(told["command"])), encoding="utf-8")
    print(table(rows), flush=True)


def _styled(split: Split) -> Split:
    """The images dealt out to the styles in turn."""
    domains = torch.arange(len(split)) % len(STYLES)
    images = split.images.clone()
    for number, style in enumerate(STYLES):
        images[domains == number] = style(split.images[domains == number])
    return Split(images, split.labels, domains)


if __name__ == "__main__":
    main()

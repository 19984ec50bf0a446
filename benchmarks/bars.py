"""Draws the bars of ``benchmarks/simulation.py``: seconds of a round, the fewer the better, each work from zero to its longest.

``python benchmarks/bars.py benchmarks/results/simulation_MACHINE.json docs/images/speed.svg``
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

COLOURS = {"fedadapt": "#0b6e4f", "plain": "#8d99ae", "pfl": "#6b705c", "flower": "#d08c60"}


def main(source: Path, out: Path) -> None:
    """One panel a work, one bar a simulator."""
    document = json.loads(source.read_text(encoding="utf-8"))
    results = document["results"]
    heights = [len(result["rounds"]) for result in results]
    figure, panels = plt.subplots(
        len(results), 1, figsize=(7, 0.27 * sum(heights) + 0.5 * len(results)), height_ratios=heights
    )
    for axes, result in zip(panels, results, strict=True):
        names = list(result["rounds"])[::-1]
        seconds = [statistics.median(r["cpu_s"] for r in result["rounds"][name]) for name in names]
        bars = axes.barh(names, seconds, color=[COLOURS[name.split("/")[0].split("-")[0]] for name in names])
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axes.margins(x=0.12)
        axes.set_xticks([])
        axes.set_title(
            result["work"] + (f", 1/{result['share']} of it" if result["share"] > 1 else ""), loc="left"
        )
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    panels[-1].set_xlabel(f"processor seconds of a round, {document['hardware']['name']}")
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

#!/usr/bin/env python3
"""Draws what main.py has found: plots.py DIRECTORY reads plots.json there and writes a PNG for each plot.

Runs in the benchmark's own environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

MARKS = "osD^vP*X"


def draw(plot: dict[str, Any], to: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for line, mark in zip(plot["lines"], MARKS, strict=False):
        if plot["names"]:
            bars = axes.barh(plot["names"][::-1], line["y"][::-1], label=line["name"], color="tab:blue")
            axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        else:
            axes.plot(line["x"], line["y"], marker=mark, markersize=4, linewidth=1.2, label=line["name"])
    axes.set_title(plot["title"], fontsize=11)
    if plot["names"]:
        axes.set_xlabel(plot["y"])
        axes.margins(x=0.15)
    else:
        axes.set_xlabel(plot["x"])
        axes.set_ylabel(plot["y"])
        axes.legend(fontsize=8)
        if plot["log"]:
            axes.set_xscale("log")
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.savefig(to, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for one in json.loads((folder / "plots.json").read_text()):
        draw(one, folder / f"{one['name']}.png")

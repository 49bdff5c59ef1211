"""The picture of a session: how many times as long the peers take, with goals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.bench.speed.rows import BEST, DEFAULT
from finetune.files import whole_file

TICKS = (0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100)
LABELS = {DEFAULT: "peer as shipped", BEST: "peer with its best flags"}


def picture(rows: Mapping[str, Any], path: Path) -> None:
    """Write the PNG: a bar a row and peer, from least to most a whisker, the goal a line across it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.7 * len(rows) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for offset, colour, side in ((-0.2, "C0", DEFAULT), (0.2, "C1", BEST)):
        found = [(place, row["ratios"][side]) for place, row in enumerate(rows.values()) if side in row["ratios"]]
        if not found:
            continue
        places = [place + offset for place, _ in found]
        medians = [ratio["median"] for _, ratio in found]
        whiskers = [
            [ratio["median"] - ratio["low"] for _, ratio in found],
            [ratio["high"] - ratio["median"] for _, ratio in found],
        ]
        axes.barh(places, medians, 0.36, xerr=whiskers, color=colour, capsize=3, label=LABELS[side])
        goals = [ratio["goal"] for _, ratio in found]
        axes.plot(goals, places, "k|", markersize=16, label="goal" if side == DEFAULT else None)
    axes.axvline(1.0, color="0.5", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["work"] for row in rows.values()], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    every = [
        value for row in rows.values() for ratio in row["ratios"].values() for value in (ratio["high"], ratio["goal"])
    ]
    axes.set_xlim(0.5, 1.2 * max(every, default=10.0))
    axes.set_xticks(shown := [tick for tick in TICKS if tick <= axes.get_xlim()[1]], [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_xlabel("times as long as finetune takes")
    axes.legend(fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})

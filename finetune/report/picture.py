"""One picture of a run: the fine-tuned model beside its baselines with intervals, and how training went."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from finetune.history import read_history
from finetune.report.summary import (
    LOWER_IS_BETTER,
    PERCENT,
    SHARES,
    clean,
    cut,
    difference,
    reported_split,
    shown_metrics,
    title,
    unit,
)

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart; markers differ as well.
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#7F7F7F", "#222222"
FAINT = "#DDDDDD"


def result_picture(record: Mapping[str, Any], path: Path, history: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Draw a run record as PNG or SVG, by the path's suffix.

    Args:
        record: run.json's dict; without metrics nothing is drawn and nothing written.
        path: the file to write; it is replaced.
        history: lines of history.jsonl; None reads the file beside the picture. Without updates the picture has the
            left half only.
    """
    if history is None:
        beside = path.with_name("history.jsonl")
        history = read_history(beside) if beside.is_file() else []
    split = reported_split(record)
    if split is None:
        return
    losses = [(line["update"], line["loss"]) for line in history if "loss" in line]
    # Figure and canvas by hand: pyplot would keep the figure in global state and choose a backend for the process.
    figure = Figure(figsize=(10.5 if losses else 6.2, 4.0), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    if losses:
        left, right = np.ravel(np.asarray(figure.subfigures(1, 2, width_ratios=(1.25, 1.0), wspace=0.03)))
        _scores(left.subplots(), record, split)
        _training(right, record, losses, history)
    else:
        _scores(figure.subplots(), record, split)
    with warnings.catch_warnings():
        # A data set's name in a script that the font lacks is drawn as boxes; that must not stop a run.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        # No version or date in the file, so that the same record gives the same bytes.
        figure.savefig(path, dpi=160, metadata={"Software": None} if path.suffix == ".png" else {"Date": None})


def _scores(axes: Axes, record: Mapping[str, Any], split: str) -> None:
    metrics = record["metrics"][split]
    metric = shown_metrics(metrics)[0]
    named = {"fine-tuned": metrics, **(record.get("baselines") or {})}
    scores = sorted(
        ((name, values[metric]) for name, values in named.items() if metric in values),
        key=lambda item: item[1]["value"],
        reverse=metric in LOWER_IS_BETTER,  # the best on top
    )
    for y, (name, score) in enumerate(scores):
        ours = name == "fine-tuned"
        colour = BLUE if ours else GREY
        axes.plot([score["low"], score["high"]], [y, y], color=colour, linewidth=4, alpha=0.45, solid_capstyle="round")
        axes.plot(score["value"], y, "o" if ours else "D", color=colour, markersize=11 if ours else 8)
        axes.annotate(
            f"{score['value']:.3f}",
            (score["value"], y),
            xytext=(0, 11),
            textcoords="offset points",
            ha="center",
            color=colour if ours else INK,
            fontsize=12 if ours else 10,
            fontweight="bold" if ours else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    _bare(axes, "left")
    axes.tick_params(axis="y", length=0)
    names = ["\n".join(textwrap.wrap(cut(clean(name), 44), 22)) for name, _ in scores]
    axes.set_yticks(range(len(scores)), names, fontsize=11)
    for tick, (name, _) in zip(axes.get_yticklabels(), scores, strict=True):
        tick.set_parse_math(False)
        tick.set_color(BLUE if name == "fine-tuned" else INK)
        tick.set_fontweight("bold" if name == "fine-tuned" else "normal")
    axes.set_ylim(-0.6, len(scores) - 0.3)
    axes.margins(x=0.09)
    lower = ", lower is better" if metric in LOWER_IS_BETTER else ""
    on = f"{metrics[metric]['n']:,} {split} {unit(record)}"
    axes.set_xlabel(f"{title(metric)} on {on} (line: 95 % interval{lower})", fontsize=10)
    source = clean((record.get("data") or {}).get("card") or "")
    recipe = clean((record.get("recipe") or {}).get("name") or "")
    heading = " on ".join(filter(None, [recipe, source])) or "results"
    axes.set_title(cut(heading, 52), loc="left", fontsize=13, fontweight="bold", pad=24, parse_math=False)
    axes.text(0, 1.03, _bought(record), transform=axes.transAxes, color=INK, fontsize=10, va="bottom", parse_math=False)


def _bought(record: Mapping[str, Any]) -> str:
    """The gain over the strongest baseline in words: the one with the smallest gain."""
    gains = record.get("gains") or {}
    if not gains:
        return ""
    name, gain = min(gains.items(), key=lambda item: item[1]["value"])
    of = " points" if gain["metric"] in SHARES else ""
    value, low, high = (difference(gain["metric"], gain[key]) for key in ("value", "low", "high"))
    if gain["metric"] in PERCENT:
        return f"{value} [{low}, {high}] {PERCENT[gain['metric']]} than {cut(clean(name), 28)}"
    return f"{value}{of} [{low}, {high}] against {cut(clean(name), 28)}"


def _training(
    figure: Any, record: Mapping[str, Any], losses: Sequence[tuple[int, float]], history: Sequence[Mapping[str, Any]]
) -> None:
    evaluations = [(line["update"], line["valid"]) for line in history if line.get("valid")]
    axes = figure.subplots(2 if evaluations else 1, 1, sharex=True, squeeze=False)[:, 0]
    updates, values = np.array([update for update, _ in losses]), np.array([loss for _, loss in losses], dtype=float)
    axes[0].plot(updates, values, color=FAINT, linewidth=1)
    axes[0].plot(updates, _smooth(values), color=INK, linewidth=1.8)
    axes[0].set_title("training loss", loc="left", fontsize=10.5, color=INK)
    finite = values[np.isfinite(values)]
    if len(finite):
        # One wild loss must not flatten the rest of the curve.
        top = max(float(np.quantile(finite, 0.995)), float(np.nanmax(_smooth(values))))
        axes[0].set_ylim(min(0.0, float(finite.min())), 1.08 * top if top > 0 else 1.0)
    if evaluations:
        metric = shown_metrics(evaluations[-1][1])[0]
        points = [(update, values[metric]) for update, values in evaluations if metric in values]
        axes[1].plot(*zip(*points, strict=True), "-o", color=ORANGE, linewidth=1.8, markersize=5)
        best = record.get("best_update")
        for update, value in points:
            if update == best:
                axes[1].plot(update, value, "o", markersize=12, markerfacecolor="none", color=ORANGE)
                axes[1].annotate(
                    f"kept: {value:.3f}",
                    (update, value),
                    xytext=(0, 10),
                    textcoords="offset points",
                    ha="right" if update == points[-1][0] and len(points) > 1 else "center",
                    fontsize=10,
                    color=ORANGE,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )
        axes[1].margins(y=0.35)
        axes[1].set_title(f"validation {title(metric)}", loc="left", fontsize=10.5, color=INK)
    axes[-1].set_xlabel("update", fontsize=10)
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    for each in axes:
        each.grid(axis="y", color=FAINT, linewidth=0.8)
        _bare(each)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential mean over about a twentieth of the run, corrected for its start; not-a-number losses are skipped."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    total = weight = 0.0
    smoothed = []
    for value in values:
        if np.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(total / weight if weight else np.nan)
    return np.array(smoothed)


def _bare(axes: Axes, *also: str) -> None:
    for side in ("top", "right", *also):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color("#AAAAAA")
    axes.tick_params(colors=INK, labelsize=10)
    axes.set_axisbelow(True)

"""The picture of a table: score against trained parameters, and against training time, one colour a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.files import whole_file

if TYPE_CHECKING:
    from finetune.bench.show import Cell
    from finetune.bench.table import Table

MARKS = "osD^vP*X<>"


def picture(table: Table, cells: Sequence[Cell], path: Path) -> None:
    """Write the PNG: a mean with its interval over seeds for each cell; a mark a column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    rows, columns = [row.name for row in table.content.rows], [column.name for column in table.content.columns]
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, label in ((left, "trainable", "trained parameters"), (right, "train_s", "training time (s)")):
        _panel(axes, cells, rows, columns, key)
        axes.set_xlabel(label)
        axes.set_xscale("symlog" if key == "trainable" else "log")
        axes.grid(alpha=0.3)
    left.set_ylabel("score")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def _panel(axes: Any, cells: Sequence[Cell], rows: list[str], columns: list[str], key: str) -> None:
    for cell in cells:
        mean, interval = float(np.mean(cell.scores)), cell.interval()
        error = [[mean - interval[0]], [interval[1] - mean]] if interval else None
        axes.errorbar(
            max(cell.mean(key), 0.01 if key == "train_s" else 0),
            mean,
            yerr=error,
            fmt=MARKS[columns.index(cell.column.name) % len(MARKS)],
            color=f"C{rows.index(cell.row.name) % 10}",
            capsize=3,
            label=f"{cell.row.name}, {cell.column.name}",
        )

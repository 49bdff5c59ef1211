"""Test predictions of finished runs, read back: their rows, and any metric of resampled rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from finetune.errors import DataError
from finetune.evaluation.intervals import Floats, Ints
from finetune.evaluation.metrics import scores_from_cells
from finetune.run_folder import read_record

Kind = Literal["classes", "numbers", "documents"]
METRICS: Mapping[Kind, tuple[str, ...]] = {
    "classes": ("accuracy", "macro_f1", "weighted_f1", "macro_precision", "macro_recall", "mcc"),
    "numbers": ("pearson", "spearman", "mse", "mae"),
    "documents": ("perplexity", "loss", "bits_per_byte"),
}
LOWER_IS_BETTER = frozenset({"mse", "mae", "perplexity", "loss", "bits_per_byte"})
LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class Stored:
    """What a finished model answered on the test rows.

    Attributes:
        kind: classes (labels and predictions are class indices), numbers (they are floats), or documents (of a
            language model: `labels` are a document's targets and bytes [rows, 2], `predictions` its summed loss).
        ids: [rows] of the data.
        names: class names in class-index order; empty without classes.
    """

    kind: Kind
    ids: tuple[str, ...]
    labels: npt.NDArray[Any]
    predictions: npt.NDArray[Any]
    names: tuple[str, ...] = ()

    def row_scores(self) -> Floats:
        """How good each row's answer is, larger is better: 1 or 0, minus the squared error, or minus the loss."""
        if self.kind == "classes":
            return (self.labels == self.predictions).astype(np.float64)
        if self.kind == "numbers":
            return -((self.labels - self.predictions) ** 2)
        scores: Floats = -self.predictions / self.labels[:, 0]
        return scores

    def statistic(self, metric: str) -> Callable[[Ints], Floats]:
        """A function from row indices [samples, rows] to the metric of each sample, [samples].

        Raises:
            DataError: the metric is none of this kind of predictions.
        """
        if metric not in METRICS[self.kind]:
            raise DataError(
                f"{metric} is no metric of these predictions.", f"Take one of {', '.join(METRICS[self.kind])}."
            )
        return {"classes": _of_classes, "numbers": _of_numbers, "documents": _of_documents}[self.kind](self, metric)

    def value(self, metric: str) -> float:
        """The metric over all rows."""
        return float(self.statistic(metric)(np.arange(len(self.ids))[None, :])[0])


def _of_classes(stored: Stored, metric: str) -> Callable[[Ints], Floats]:
    right = stored.row_scores()
    if metric == "accuracy":
        return lambda rows_of: right[rows_of].mean(axis=1)
    classes = len(stored.names)
    cells, cell_of_row = np.unique(stored.labels * classes + stored.predictions, return_inverse=True)

    def scores(rows_of: Ints) -> Floats:
        samples, size = len(rows_of), len(cells)
        flat = (cell_of_row[rows_of] + size * np.arange(samples)[:, None]).ravel()
        counts = np.bincount(flat, minlength=samples * size).reshape(samples, size).astype(np.float64)
        return scores_from_cells(counts, cells // classes, cells % classes, classes)[metric]

    return scores


def _of_numbers(stored: Stored, metric: str) -> Callable[[Ints], Floats]:
    true, predicted = stored.labels.astype(np.float64), stored.predictions.astype(np.float64)

    def scores(rows_of: Ints) -> Floats:
        a, b = true[rows_of], predicted[rows_of]
        if metric in ("mse", "mae"):
            error = a - b
            return (error**2 if metric == "mse" else np.abs(error)).mean(axis=1)
        if metric == "spearman":  # ranks anew in each sample: ties of repeated rows share theirs
            a, b = scipy.stats.rankdata(a, axis=1), scipy.stats.rankdata(b, axis=1)
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        return np.divide((a * b).sum(axis=1), norm, out=np.zeros_like(norm), where=norm > 0)

    return scores


def _of_documents(stored: Stored, metric: str) -> Callable[[Ints], Floats]:
    def scores(rows_of: Ints) -> Floats:
        loss, sizes = stored.predictions[rows_of].sum(axis=1), stored.labels[rows_of].sum(axis=1)
        if metric == "bits_per_byte":
            return loss / LN2 / sizes[:, 1]
        mean = loss / sizes[:, 0]
        return np.exp(mean) if metric == "perplexity" else mean

    return scores


def read_predictions(run: Path, record: Mapping[str, Any] | None = None) -> Stored:
    """The predictions.parquet of a completed run.

    Raises:
        ConfigError: no run folder.
        DataError: the run is not completed, or its predictions are missing, damaged or of an unknown kind.
    """
    import pyarrow
    import pyarrow.parquet

    record = record if record is not None else read_record(run)
    if record["status"] != "completed":
        raise DataError(f"{run} is {record['status']}, not completed.", f"Finish it: finetune run --resume {run}")
    path = run / "predictions.parquet"
    try:
        columns = pyarrow.parquet.read_table(path).to_pydict()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path} can't be read: {str(error).splitlines()[0]}", "Run it again.") from None
    ids = tuple(map(str, columns.get("id", ())))
    if not ids or len(set(ids)) < len(ids):
        raise DataError(f"{path} has no ids, or one twice.", "Rows can't be paired without; run it again.")
    if "loss_sum" in columns and "bytes" in columns:
        sizes = np.stack([np.asarray(columns[name], np.float64) for name in ("tokens", "bytes")], axis=1)
        return Stored("documents", ids, sizes, np.asarray(columns["loss_sum"], np.float64))
    labels, predictions = columns.get("label"), columns.get("prediction")
    if labels and predictions and isinstance(labels[0], str) and isinstance(predictions[0], str):
        names = tuple(record["data"]["labels"])
        index = {name: number for number, name in enumerate(names)}
        stray = [name for name in {*labels, *predictions} if name not in index]
        if stray:
            raise DataError(f"{path} has the label {stray[0]!r}, which run.json lacks.", "One of them was changed.")
        true, answers = (np.array([index[name] for name in column]) for column in (labels, predictions))
        return Stored("classes", ids, true, answers, names)
    if labels and predictions and all(isinstance(column[0], float) for column in (labels, predictions)):
        return Stored("numbers", ids, np.asarray(labels, np.float64), np.asarray(predictions, np.float64))
    raise DataError(f"{path} holds no answers that can be scored row by row ({', '.join(columns)}).")


def joined(one: Stored, other: Stored, names: tuple[str, str]) -> Stored:
    """`other` with its rows in the order of `one`.

    Raises:
        DataError: not the same rows, or another truth for one of them.
    """
    if one.kind != other.kind or one.names != other.names:
        raise DataError(f"{names[0]} and {names[1]} answer different questions.", "Compare runs of one task and data.")
    at = {name: number for number, name in enumerate(other.ids)}
    missing = [name for name in one.ids if name not in at]
    if missing or len(one.ids) != len(other.ids):
        raise DataError(
            f"{names[0]} and {names[1]} have different test rows ({len(one.ids):,} and {len(other.ids):,}"
            + (f"; {missing[0]!r} is in the first only)." if missing else ")."),
            "A paired test needs the same rows.",
        )
    order = np.array([at[name] for name in one.ids])
    if not np.array_equal(one.labels, other.labels[order]):
        raise DataError(f"{names[0]} and {names[1]} have other truths for the same rows.", "Their data differ.")
    return Stored(one.kind, one.ids, one.labels, other.predictions[order], one.names)

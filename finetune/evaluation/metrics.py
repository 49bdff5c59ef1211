"""How well a classifier does: scikit-learn's metrics, each with a bootstrap interval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sklearn_metrics

from finetune.evaluation.intervals import (
    Floats,
    Interval,
    Ints,
    basic_interval,
    bootstrap,
    exact_share_interval,
    percentile_interval,
)

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassificationReport:
    """The scores of one split.

    headline: accuracy, macro_f1, weighted_f1, macro_precision, macro_recall, mcc and ece; f1 of a positive class.
    per_class: one {"label", "precision", "recall", "f1", "support"} a class, in class-index order.
    confusion: [classes, classes] row counts; first axis is the true class, second the predicted one.
    predictions: [rows] class indices, for paired tests against another model on the same rows.
    correct: [rows] bool.
    """

    headline: dict[str, Interval]
    per_class: list[dict[str, Any]]
    confusion: Ints
    predictions: Ints
    correct: npt.NDArray[np.bool_]

    def values(self) -> dict[str, float]:
        """The headline values alone, for a line of history.jsonl."""
        return {name: interval.value for name, interval in self.headline.items()}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready parts as run.json holds them: {"metrics", "per_class", "confusion"}."""
        return {
            "metrics": {name: interval.as_dict() for name, interval in self.headline.items()},
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }


def matthews_correlation(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Correlation of true and predicted classes, from -1 to 1; 0 is what a constant prediction gets."""
    with warnings.catch_warnings():
        # One class in all rows: scikit-learn warns and returns 0, which is what this metric promises.
        warnings.filterwarnings("ignore", "A single label was found", UserWarning)
        return float(sklearn_metrics.matthews_corrcoef(labels, predictions))


def calibration_error(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Expected calibration error: the mean gap of confidence and accuracy over 15 equal-width confidence bins.

    On few rows the value is biased upwards: even a perfectly calibrated model shows about sqrt(bins / rows) / 3.

    Args:
        probabilities: [rows, classes].
        labels: [rows] class indices.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    bins, gaps = calibration_gaps(probabilities, np.asarray(labels) == probabilities.argmax(axis=1))
    return float(np.abs(np.bincount(bins, gaps)).sum() / len(gaps))


def classification_metrics(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, names: Sequence[str], seed: int, positive: int | None = None
) -> ClassificationReport:
    """Every classification metric of one split, the headline ones with a 95 % bootstrap interval over rows.

    The averages are over the classes that occur among labels or predictions, as scikit-learn does by default, so a
    class without a row in a small test set doesn't pull a macro score down.

    Args:
        probabilities: [rows, classes] float, in the caller's row order.
        labels: [rows] int class indices.
        names: class names in class-index order.
        seed: of the bootstrap; the same seed and rows give the same interval to the bit.
        positive: index of a class whose own F1 is wanted too.

    Raises:
        ValueError: no rows, shapes that don't belong together, a probability that is not finite, a label out of range.
    """
    probabilities, labels = _checked(probabilities, labels, names)
    predictions: Ints = probabilities.argmax(axis=1)
    correct = predictions == labels
    values = _values(probabilities, labels, predictions, positive)

    rows, classes = probabilities.shape
    # Only pairs of classes that occur: 52 classes have 2,704 cells, of which a test set fills some hundred.
    cells, cell_of_row = np.unique(labels * classes + predictions, return_inverse=True)
    bin_of_row, gap_of_row = calibration_gaps(probabilities, correct)

    def resampled(rows_of: Ints) -> dict[str, Floats]:
        counts = _counts(cell_of_row[rows_of], len(cells))
        gaps = _counts(bin_of_row[rows_of], CALIBRATION_BINS, gap_of_row[rows_of])
        return {
            **scores_from_cells(counts, cells // classes, cells % classes, classes, positive),
            "ece": np.abs(gaps).sum(axis=1) / rows,
        }

    samples = bootstrap(resampled, rows, seed)
    intervals = {name: percentile_interval(sample) for name, sample in samples.items()}
    intervals["ece"] = basic_interval(values["ece"], samples["ece"])
    if correct.all() or not correct.any():
        intervals["accuracy"] = exact_share_interval(int(correct.sum()), rows)
    return ClassificationReport(
        headline={name: Interval(value, *intervals[name], rows) for name, value in values.items()},
        per_class=_per_class(labels, predictions, names),
        confusion=sklearn_metrics.confusion_matrix(labels, predictions, labels=np.arange(classes)).astype(np.int64),
        predictions=predictions,
        correct=correct,
    )


def classification_values(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, names: Sequence[str], positive: int | None = None
) -> dict[str, float]:
    """The headline values of `classification_metrics` without intervals: for evaluations in the middle of a run.

    Raises:
        ValueError: as `classification_metrics`.
    """
    probabilities, labels = _checked(probabilities, labels, names)
    return _values(probabilities, labels, probabilities.argmax(axis=1), positive)


def scores_from_cells(
    counts: Floats, true: Ints, predicted: Ints, classes: int, positive: int | None = None
) -> dict[str, Floats]:
    """The confusion-matrix scores of many samples at once, equal to scikit-learn's one by one.

    Args:
        counts: [samples, cells] rows in each cell of a flattened confusion matrix; cells that are always 0 left out.
        true, predicted: [cells] class index of each cell.
        classes: number of classes.

    Returns:
        accuracy, macro_f1, weighted_f1, macro_precision, macro_recall and mcc, and f1 of the class `positive` where one
        is named, each [samples].
    """
    rows_S = counts.sum(axis=1)
    true_SC = counts @ np.eye(classes)[true]
    predicted_SC = counts @ np.eye(classes)[predicted]
    hits_SC = counts @ (np.eye(classes)[true] * (true == predicted)[:, None])
    hits_S = hits_SC.sum(axis=1)
    f1_SC = _ratio(2 * hits_SC, true_SC + predicted_SC)
    # A class that neither occurs nor is predicted is no part of a macro average.
    present_S = np.count_nonzero(true_SC + predicted_SC, axis=1)
    variance_S = (rows_S**2 - (true_SC**2).sum(axis=1)) * (rows_S**2 - (predicted_SC**2).sum(axis=1))
    return {
        "accuracy": hits_S / rows_S,
        "macro_f1": f1_SC.sum(axis=1) / present_S,
        "weighted_f1": (f1_SC * true_SC).sum(axis=1) / rows_S,
        "macro_precision": _ratio(hits_SC, predicted_SC).sum(axis=1) / present_S,
        "macro_recall": _ratio(hits_SC, true_SC).sum(axis=1) / present_S,
        "mcc": _ratio(hits_S * rows_S - (true_SC * predicted_SC).sum(axis=1), np.sqrt(variance_S)),
        **({} if positive is None else {"f1": f1_SC[:, positive]}),
    }


def _values(probabilities: Floats, labels: Ints, predictions: Ints, positive: int | None) -> dict[str, float]:
    # Not through `evaluate`'s API (finetune/evaluation/offline.py): importing it takes seconds in every process.
    averaged = {"zero_division": 0, "y_true": labels, "y_pred": predictions}
    values = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predictions),
        "macro_f1": sklearn_metrics.f1_score(**averaged, average="macro"),
        "weighted_f1": sklearn_metrics.f1_score(**averaged, average="weighted"),
        "macro_precision": sklearn_metrics.precision_score(**averaged, average="macro"),
        "macro_recall": sklearn_metrics.recall_score(**averaged, average="macro"),
        "mcc": matthews_correlation(labels, predictions),
        "ece": calibration_error(probabilities, labels),
    }
    if positive is not None:
        values["f1"] = sklearn_metrics.f1_score(labels == positive, predictions == positive, zero_division=0)
    return {name: float(value) for name, value in values.items()}


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _counts(cells: Ints, size: int, weights: Floats | None = None) -> Floats:
    """Per sample, how often (or with what summed weight) each cell occurs: [samples, rows] -> [samples, size]."""
    samples = len(cells)
    flat = (cells + size * np.arange(samples)[:, None]).ravel()
    summed = np.bincount(flat, None if weights is None else weights.ravel(), minlength=samples * size)
    return summed.reshape(samples, size).astype(np.float64)


def calibration_gaps(probabilities: Floats, correct: npt.NDArray[np.bool_]) -> tuple[Ints, Floats]:
    """Per row, the confidence bin and (1 if right, else 0) minus the confidence."""
    confidence = probabilities.max(axis=1)
    # Bins are open below and closed above, as in Guo et al. 2017: a confidence of 1 belongs to the last.
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return bins, correct - confidence


def _per_class(labels: Ints, predictions: Ints, names: Sequence[str]) -> list[dict[str, Any]]:
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, labels=np.arange(len(names)), average=None, zero_division=0
    )
    return [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for name, p, r, f, s in zip(names, precision, recall, f1, support, strict=True)
    ]


def _checked(probabilities: npt.ArrayLike, labels: npt.ArrayLike, names: Sequence[str]) -> tuple[Floats, Ints]:
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.ndim != 1 or len(probabilities) != len(labels):
        raise ValueError(
            f"probabilities {probabilities.shape} and labels {labels.shape} are not [rows, classes], [rows]"
        )
    if not len(labels):
        raise ValueError("there are no rows to score")
    if probabilities.shape[1] != len(names):
        raise ValueError(f"probabilities have {probabilities.shape[1]} classes, but there are {len(names)} names")
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is not a finite number")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"labels must be whole numbers from 0 to {len(names) - 1}")
    return probabilities, labels.astype(np.int64)

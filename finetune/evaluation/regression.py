"""How well numbers are predicted: correlations and errors with bootstrap intervals, and the judge of regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from finetune.evaluation.intervals import RESAMPLES, Floats, Interval, Ints, bootstrap, percentile_interval
from finetune.evaluation.paired import Gain


def regression_values(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """pearson, spearman, mse and mae of [rows] predictions, without intervals.

    Raises:
        ValueError: no rows, other shapes than [rows], or a number that is not finite.
    """
    predicted, true = _checked(predictions, labels)
    return {name: float(values_S[0]) for name, values_S in _scores(predicted[None, :], true[None, :]).items()}


def regression_metrics(predictions: npt.ArrayLike, labels: npt.ArrayLike, seed: int) -> dict[str, Interval]:
    """pearson, spearman, mse and mae, each with a 95 % bootstrap interval over rows.

    Raises:
        ValueError: as `regression_values`.
    """
    predicted, true = _checked(predictions, labels)
    values = regression_values(predicted, true)

    def resampled(rows_of: Ints) -> dict[str, Floats]:
        return _scores(predicted[rows_of], true[rows_of])

    samples = bootstrap(resampled, len(true), seed)
    return {name: Interval(value, *percentile_interval(samples[name]), len(true)) for name, value in values.items()}


def correlation_gain(predictions: npt.ArrayLike, baseline: npt.ArrayLike, labels: npt.ArrayLike, seed: int) -> Gain:
    """How much higher the Pearson correlation is than a baseline's on the same rows; interval and p of the bootstrap.

    p is twice the share of resamples on the other side of 0 (and never 0: a resample is added to either side).
    """
    (a, true), (b, _) = _checked(predictions, labels), _checked(baseline, labels)

    def resampled(rows_of: Ints) -> dict[str, Floats]:
        y_SR = true[rows_of]
        return {"gain": _correlation(a[rows_of], y_SR) - _correlation(b[rows_of], y_SR)}

    value = float(resampled(np.arange(len(true))[None, :])["gain"][0])
    gains = bootstrap(resampled, len(true), seed)["gain"]
    tail = (min(int((gains <= 0).sum()), int((gains >= 0).sum())) + 1) / (RESAMPLES + 1)
    return Gain("pearson", value, *percentile_interval(gains), len(true), min(1.0, 2 * tail))


class RegressionJudge:
    """Judges predicted numbers, [rows, 1], by split.

    Args:
        labels: true numbers by split, [rows] each.
        seed: of the bootstrap intervals.
    """

    best_metric = "pearson"

    def __init__(self, labels: Mapping[str, npt.ArrayLike], seed: int) -> None:
        self.labels = {split: np.asarray(values, dtype=np.float64) for split, values in labels.items()}
        self.seed = seed

    def quick(self, split: str, outputs: npt.ArrayLike) -> dict[str, float]:
        """Values for evaluations in the middle of a run."""
        return regression_values(_first(outputs), self.labels[split])

    def judge(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """What run.json holds of a split: `metrics` with 95 % intervals."""
        found = regression_metrics(_first(outputs), self.labels[split], self.seed)
        return {"metrics": {name: interval.as_dict() for name, interval in found.items()}}

    def gain(self, split: str, outputs: npt.ArrayLike, baseline: npt.ArrayLike) -> dict[str, Any]:
        """The paired gain in Pearson correlation over a baseline on the same rows."""
        gain = correlation_gain(_first(outputs), _first(baseline), self.labels[split], self.seed)
        return {**gain.as_dict(), "test": "paired bootstrap"}

    def columns(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """Columns of predictions.parquet besides the row ids."""
        return {"label": self.labels[split], "prediction": _first(outputs)}


def _first(outputs: npt.ArrayLike) -> Floats:
    return np.asarray(outputs, dtype=np.float64)[:, 0]


def _scores(x_SR: Floats, y_SR: Floats) -> dict[str, Floats]:
    """Of many samples at once, each [samples]."""
    return {
        "pearson": _correlation(x_SR, y_SR),
        "spearman": _correlation(_ranks(x_SR), _ranks(y_SR)),
        "mse": np.square(x_SR - y_SR).mean(axis=1),
        "mae": np.abs(x_SR - y_SR).mean(axis=1),
    }


def _ranks(values_SR: Floats) -> Floats:
    ranks: Floats = scipy.stats.rankdata(values_SR, axis=1)
    return ranks


def _correlation(x_SR: Floats, y_SR: Floats) -> Floats:
    """Pearson correlation of each sample, [samples]; 0 where one side doesn't vary."""
    # Asked before the mean is taken: that of equal numbers rounds, and leaves a spread of nearly nothing.
    vary = (np.ptp(x_SR, axis=1) > 0) & (np.ptp(y_SR, axis=1) > 0)
    x_SR, y_SR = x_SR - x_SR.mean(axis=1, keepdims=True), y_SR - y_SR.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(x_SR).sum(axis=1) * np.square(y_SR).sum(axis=1))
    varies = (spread > 0) & vary
    found: Floats = np.divide((x_SR * y_SR).sum(axis=1), spread, out=np.zeros_like(spread), where=varies)
    return np.clip(found, -1.0, 1.0)


def _checked(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    predicted, true = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != true.shape:
        raise ValueError(f"predictions {predicted.shape} and labels {true.shape} are not [rows] of the same rows")
    if not len(true):
        raise ValueError("there are no rows to score")
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        raise ValueError("a number is not finite")
    return predicted, true

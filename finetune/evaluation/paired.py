"""Is model A better than model B on the same rows: paired bootstrap of the difference, and McNemar's exact test."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from finetune.evaluation.intervals import RESAMPLES, Interval, percentile_interval


class Gain(NamedTuple):
    """How much more of `metric` A has than B, with its 95 % interval, rows, and the p-value of no difference."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    p: float

    def as_dict(self) -> dict[str, str | float | int]:
        """What run.json holds: {"metric", "value", "low", "high", "n", "p"}."""
        return self._asdict()


def paired_difference(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike, seed: int) -> Interval:
    """Mean of A minus mean of B over the same rows, with a 95 % paired bootstrap interval.

    Args:
        correct_a, correct_b: [rows] bool, or any per-row score whose mean is the metric.
        seed: of the bootstrap.

    Raises:
        ValueError: no rows, different numbers of rows, or a score that is not finite.
    """
    a, b = _rows_of_both(correct_a, correct_b)
    # A resample of rows is a multinomial draw over the differences that occur (-1, 0, 1 for right and wrong answers):
    # the same distribution as drawing row by row, at a cost that doesn't grow with the rows.
    differences, counts = np.unique(a - b, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(a), counts / len(a), size=RESAMPLES)
    low, high = percentile_interval(draws @ differences / len(a))
    return Interval(float(a.mean() - b.mean()), low, high, len(a))


def mcnemar_p(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test: of the rows where only one is right, is each as often the one?

    Args:
        correct_a, correct_b: [rows] bool.

    Returns:
        1.0 where the two never differ.

    Raises:
        ValueError: no rows, or different numbers of rows.
    """
    a, b = _rows_of_both(correct_a, correct_b)
    only_a, only_b = int(np.sum(a > b)), int(np.sum(a < b))
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def accuracy_gain(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike, seed: int) -> Gain:
    """The accuracy that A has over B: [rows] bool each. One entry of run.json's `gains`."""
    difference = paired_difference(correct_a, correct_b, seed)
    return Gain("accuracy", *difference, mcnemar_p(correct_a, correct_b))


def _rows_of_both(
    scores_a: npt.ArrayLike, scores_b: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"scores of the same rows are needed, but the shapes are {a.shape} and {b.shape}")
    if not len(a):
        raise ValueError("there are no rows to compare")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a score is not a finite number")
    return a, b

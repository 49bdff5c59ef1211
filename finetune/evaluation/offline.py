"""This project's metrics behind the `evaluate` library's API, for `evaluate.combine` and whatever else speaks it.

Nothing asks the hub: `evaluate.load("accuracy")` would fetch code there and run it. Runs call the functions themselves,
with the same numbers, because importing `evaluate` imports pipelines and torchvision too: 2.4 s of processor time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from sklearn import metrics as sklearn_metrics

from finetune.evaluation.metrics import calibration_error, matthews_correlation
from finetune.evaluation.regression import regression_values


class OfflineMetric(evaluate.Metric):
    """An `evaluate.Metric` that is defined here. `predictions` and `references` are class indices unless it says more.

    Attributes:
        prediction, reference: what one of each is.
    """

    prediction: ClassVar[Any] = datasets.Value("int64")
    reference: ClassVar[Any] = datasets.Value("int64")

    def __init__(self, **settings: Any) -> None:
        # In memory, so that parallel runs don't share a cache file; seeded, so that numpy's global state is not read.
        super().__init__(keep_in_memory=True, seed=0, **settings)

    def _build_data_dir(self) -> str:
        return ""  # The base class would make an empty folder in the user's cache, though nothing is written there.

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions and references, one of each a row.",
            features=datasets.Features({"predictions": self.prediction, "references": self.reference}),
        )


class Accuracy(OfflineMetric):
    """Share of rows whose predicted class is the true one."""

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(sklearn_metrics.accuracy_score(references, predictions))}


class F1(OfflineMetric):
    """Harmonic mean of precision and recall, averaged over the classes that occur among references or predictions."""

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], average: str = "macro"
    ) -> dict[str, float]:
        return {"f1": float(sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0))}


class Precision(OfflineMetric):
    """Share of a class's predictions that are right (0 when it is never predicted), averaged over classes."""

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], average: str = "macro"
    ) -> dict[str, float]:
        score = sklearn_metrics.precision_score(references, predictions, average=average, zero_division=0)
        return {"precision": float(score)}


class Recall(OfflineMetric):
    """Share of a class's rows that are found (0 when it has none), averaged over classes."""

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], average: str = "macro"
    ) -> dict[str, float]:
        score = sklearn_metrics.recall_score(references, predictions, average=average, zero_division=0)
        return {"recall": float(score)}


class MatthewsCorrelation(OfflineMetric):
    """Correlation of true and predicted classes, from -1 to 1; 0 is what a constant prediction gets."""

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"mcc": matthews_correlation(references, predictions)}


class CalibrationError(OfflineMetric):
    """Expected calibration error in 15 bins of confidence; predictions are class probabilities [rows, classes]."""

    prediction = datasets.List(datasets.Value("float64"))

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[int]) -> dict[str, float]:
        return {"ece": calibration_error(predictions, references)}


class Regression(OfflineMetric):
    """pearson, spearman, mse and mae of numbers, as `regression_values` has them."""

    prediction = reference = datasets.Value("float64")

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return regression_values(np.asarray(predictions), np.asarray(references))

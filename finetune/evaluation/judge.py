"""Judges: what a kind of task says of its outputs. One class a kind; a recipe gives its task one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


class ClassificationJudge:
    """Judges class probabilities, [rows, classes], by split.

    Args:
        labels: true class indices by split, [rows] int each.
        names: class names in class-index order.
        seed: of the bootstrap intervals.
        best_metric: what the kept checkpoint is best at.
        positive: index of a class whose own F1 is measured too.
    """

    def __init__(
        self,
        labels: Mapping[str, npt.NDArray[np.int64]],
        names: tuple[str, ...],
        seed: int,
        best_metric: str = "accuracy",
        positive: int | None = None,
    ) -> None:
        self.labels, self.names, self.seed = labels, names, seed
        self.best_metric, self.positive = best_metric, positive

    def quick(self, split: str, outputs: npt.ArrayLike) -> dict[str, float]:
        """Values for evaluations in the middle of a run; `loss` is the mean negative log-likelihood."""
        from finetune.evaluation.metrics import classification_values  # scikit-learn takes 0.7 s: not before it is due

        values = classification_values(outputs, self.labels[split], self.names, self.positive)
        true = np.asarray(outputs, dtype=np.float64)[np.arange(len(self.labels[split])), self.labels[split]]
        return {
            "loss": float(-np.log(true.clip(min=1e-12)).mean()),
            **{name: values[name] for name in ("accuracy", "f1", "macro_f1", self.best_metric) if name in values},
        }

    def judge(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """What run.json holds of a split: `metrics` with 95 % intervals, and the tables `per_class` and `confusion`."""
        from finetune.evaluation.metrics import classification_metrics

        return classification_metrics(outputs, self.labels[split], self.names, self.seed, self.positive).as_dict()

    def gain(self, split: str, outputs: npt.ArrayLike, baseline: npt.ArrayLike) -> dict[str, Any]:
        """The paired gain of the outputs over a baseline's on the same rows."""
        from finetune.evaluation.paired import accuracy_gain

        labels = self.labels[split]
        right, baseline_right = (np.asarray(some).argmax(axis=1) == labels for some in (outputs, baseline))
        return accuracy_gain(right, baseline_right, self.seed).as_dict()

    def columns(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """Columns of predictions.parquet besides the row ids."""
        probabilities = np.asarray(outputs)
        return {
            "label": [self.names[index] for index in self.labels[split]],
            "prediction": [self.names[index] for index in probabilities.argmax(axis=1)],
            "probabilities": list(probabilities),
        }

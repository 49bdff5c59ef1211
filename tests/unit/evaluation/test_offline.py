"""The metrics behind `evaluate`'s API: the numbers of a run, and no run waits for that library."""

import subprocess
import sys

import evaluate
import numpy as np
import pytest

from finetune.evaluation.metrics import classification_values
from finetune.evaluation.offline import (
    F1,
    Accuracy,
    CalibrationError,
    MatthewsCorrelation,
    OfflineMetric,
    Precision,
    Recall,
    Regression,
)
from finetune.evaluation.regression import regression_values

pytestmark = pytest.mark.unit
LABELS = [0, 1, 2, 2, 1, 0, 0]
PROBABILITIES = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], len(LABELS))


@pytest.mark.parametrize(
    ("metric", "found", "name", "more"),
    [
        (Accuracy, "accuracy", "accuracy", {}),
        (F1, "f1", "macro_f1", {}),
        (F1, "f1", "weighted_f1", {"average": "weighted"}),
        (Precision, "precision", "macro_precision", {}),
        (Recall, "recall", "macro_recall", {}),
        (MatthewsCorrelation, "mcc", "mcc", {}),
    ],
)
def test_the_api_gives_the_number_of_a_run(
    metric: type[OfflineMetric], found: str, name: str, more: dict[str, str]
) -> None:
    expected = classification_values(PROBABILITIES, LABELS, ("a", "b", "c"))
    computed = metric().compute(predictions=PROBABILITIES.argmax(axis=1), references=LABELS, **more)
    assert computed == {found: expected[name]}


def test_probabilities_and_numbers_too() -> None:
    expected = classification_values(PROBABILITIES, LABELS, ("a", "b", "c"))
    assert CalibrationError().compute(predictions=PROBABILITIES, references=LABELS) == {"ece": expected["ece"]}
    guesses, truth = [0.5, 1.5, 2.0], [0.0, 2.0, 3.0]
    assert Regression().compute(predictions=guesses, references=truth) == regression_values(guesses, truth)


def test_rows_are_added_one_by_one_and_metrics_combined() -> None:
    metric = Accuracy()
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add(prediction=1, reference=1)
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}
    both = evaluate.combine([Accuracy(), MatthewsCorrelation()])
    assert both.compute(predictions=[0, 1], references=[0, 1]) == {"accuracy": 1.0, "mcc": 1.0}


def test_metrics_leave_nothing_on_disk(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "metrics")
    Accuracy().compute(predictions=[0], references=[0])
    assert list(tmp_path.iterdir()) == []


def test_scores_wait_for_no_heavy_library() -> None:
    """`bench check` and `compare` score stored answers: neither a model nor `evaluate` is needed for that."""
    code = (
        "import sys, finetune.evaluation.judge, finetune.evaluation.regression, finetune.evaluation.stored\n"
        "print({'evaluate', 'torch', 'transformers', 'torchvision'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

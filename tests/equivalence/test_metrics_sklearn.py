"""Metrics equal scikit-learn's, one by one and vectorised, with classes that are absent from labels or predictions."""

import numpy as np
import pytest
from sklearn import metrics as sk

from finetune.evaluation.metrics import classification_metrics, scores_from_cells

pytestmark = pytest.mark.equivalence


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [rows, classes], labels [rows], predictions [rows]; some classes have no row or no prediction."""
    generator = np.random.default_rng(seed)
    rows, classes = int(generator.integers(1, 200)), int(generator.integers(2, 12))
    probabilities = generator.dirichlet(np.full(classes, 0.3), rows)
    probabilities[:, generator.random(classes) < 0.3] *= 1e-9
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    present = np.flatnonzero(generator.random(classes) < 0.6)
    labels = generator.choice(present if len(present) else [0], rows)
    hit = generator.random(rows) < generator.random()
    return probabilities, np.where(hit, probabilities.argmax(axis=1), labels), probabilities.argmax(axis=1)


def expected(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    both = (labels, predictions)
    one_class = len(set(labels) | set(predictions)) == 1
    return {
        "accuracy": sk.accuracy_score(*both),
        "macro_f1": sk.f1_score(*both, average="macro", zero_division=0),
        "weighted_f1": sk.f1_score(*both, average="weighted", zero_division=0),
        "macro_precision": sk.precision_score(*both, average="macro", zero_division=0),
        "macro_recall": sk.recall_score(*both, average="macro", zero_division=0),
        "mcc": 0.0 if one_class else sk.matthews_corrcoef(*both),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Row by row as in Guo et al. 2017, equation 3."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities, labels, strict=True):
        number = next(m for m in range(1, 16) if row.max() <= m / 15 or m == 15)
        bins.setdefault(number, []).append((row.max(), row.argmax() == label))
    gaps = [len(rows) * abs(np.mean([r for _, r in rows]) - np.mean([c for c, _ in rows])) for rows in bins.values()]
    return float(sum(gaps) / len(labels))


@pytest.mark.parametrize("seed", range(60))
def test_values_equal_scikit_learn(seed: int) -> None:
    probabilities, labels, predictions = case(seed)
    names = [str(index) for index in range(probabilities.shape[1])]
    report = classification_metrics(probabilities, labels, names, seed=0)
    for name, value in expected(labels, predictions).items():
        assert report.headline[name].value == pytest.approx(value, abs=1e-12), name
    assert report.headline["ece"].value == pytest.approx(calibration_error(probabilities, labels), abs=1e-12)
    np.testing.assert_array_equal(
        report.confusion, sk.confusion_matrix(labels, predictions, labels=range(probabilities.shape[1]))
    )
    table = sk.classification_report(
        labels, predictions, labels=range(len(names)), target_names=names, output_dict=True, zero_division=0
    )
    for row in report.per_class:
        assert row["f1"] == pytest.approx(table[row["label"]]["f1-score"], abs=1e-12)
        assert row["support"] == table[row["label"]]["support"]


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_resamples_equal_scikit_learn_on_each_resample(seed: int) -> None:
    """What the intervals are made of: resamples lose classes that the data has."""
    _, labels, predictions = case(seed)
    classes = int(max(labels.max(), predictions.max())) + 1
    cells, cell_of_row = np.unique(labels * classes + predictions, return_inverse=True)
    rows = np.random.default_rng(seed).integers(0, len(labels), size=(30, len(labels)))
    counts = np.stack([np.bincount(cell_of_row[resample], minlength=len(cells)) for resample in rows]).astype(float)
    scores = scores_from_cells(counts, cells // classes, cells % classes, classes)
    for index, resample in enumerate(rows):
        for name, value in expected(labels[resample], predictions[resample]).items():
            assert scores[name][index] == pytest.approx(value, abs=1e-12), name

"""Classification metrics: hand-computed values, shapes, and what is refused."""

import json

import numpy as np
import pytest

from finetune.evaluation.metrics import (
    calibration_error,
    classification_metrics,
    classification_values,
)

pytestmark = pytest.mark.unit

# Rows: predicted 0, 0, 1, 2; true 0, 1, 1, 2.
PROBABILITIES = [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.0, 0.9]]
LABELS = [0, 1, 1, 2]
NAMES = ("a", "b", "c")


def test_values_by_hand() -> None:
    report = classification_metrics(PROBABILITIES, LABELS, NAMES, seed=0)
    values = report.values()
    assert values["accuracy"] == 0.75
    assert values["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3, abs=1e-15)
    assert values["weighted_f1"] == pytest.approx((2 / 3 + 2 * 2 / 3 + 1) / 4, abs=1e-15)
    assert values["macro_precision"] == pytest.approx((1 / 2 + 1 + 1) / 3, abs=1e-15)
    assert values["macro_recall"] == pytest.approx((1 + 1 / 2 + 1) / 3, abs=1e-15)
    # Each row has a confidence bin of its own: gaps 0.2, -0.6, 0.3, 0.1.
    assert values["ece"] == pytest.approx((0.2 + 0.6 + 0.3 + 0.1) / 4, abs=1e-15)
    assert report.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert report.predictions.tolist() == [0, 0, 1, 2]
    assert report.correct.tolist() == [True, False, True, True]
    assert report.per_class[1] == {
        "label": "b",
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }


def test_values_without_intervals_are_the_same_values() -> None:
    report = classification_metrics(PROBABILITIES, LABELS, NAMES, seed=0)
    assert classification_values(PROBABILITIES, LABELS, NAMES) == report.values()


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others() -> None:
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet(np.ones(3), 200), generator.integers(0, 3, 200)
    first = classification_metrics(probabilities, labels, NAMES, seed=1).headline
    assert classification_metrics(probabilities, labels, NAMES, seed=1).headline == first
    assert classification_metrics(probabilities, labels, NAMES, seed=2).headline != first


def test_row_order_changes_no_value() -> None:
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet(np.ones(3), 200), generator.integers(0, 3, 200)
    order = generator.permutation(200)
    assert classification_values(probabilities[order], labels[order], NAMES) == pytest.approx(
        classification_values(probabilities, labels, NAMES), abs=1e-12
    )


def test_every_interval_holds_its_value_and_says_its_rows() -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet(np.full(4, 0.3), 300)
    labels = np.where(generator.random(300) < 0.7, probabilities.argmax(axis=1), generator.integers(0, 4, 300))
    for name, interval in classification_metrics(probabilities, labels, tuple("abcd"), seed=0).headline.items():
        assert interval.low < interval.value < interval.high, name
        assert interval.n == 300


@pytest.mark.parametrize(("right", "low", "high"), [(True, 0.9638, 1.0), (False, 0.0, 0.0362)])
def test_all_right_or_all_wrong_is_not_certainty(right: bool, low: float, high: float) -> None:
    """All resamples are the same then; Clopper-Pearson for 100 of 100 is [0.9638, 1]."""
    labels = np.tile([0, 1], 50)
    probabilities = np.eye(2)[labels if right else 1 - labels]
    accuracy = classification_metrics(probabilities, labels, ("a", "b"), seed=0).headline["accuracy"]
    assert (accuracy.low, accuracy.high) == pytest.approx((low, high), abs=1e-4)


def test_a_calibrated_models_interval_reaches_far_below_the_biased_value() -> None:
    """A percentile interval would lie above the truth, which is 0 here: each resample adds noise once more."""
    generator = np.random.default_rng(0)
    confidence = 0.5 + 0.5 * generator.random(400)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = (generator.random(400) > confidence).astype(int)
    ece = classification_metrics(probabilities, labels, ("a", "b"), seed=0).headline["ece"]
    assert ece.value > 0.02
    assert ece.low < 0.01


def test_one_class_in_all_rows_is_scored_without_a_warning() -> None:
    report = classification_metrics([[0.9, 0.1], [0.8, 0.2]], [0, 0], ("a", "b"), seed=0)
    assert report.values()["mcc"] == 0.0
    assert report.values()["macro_f1"] == 1.0
    assert report.per_class[1]["support"] == 0


def test_confidence_of_one_and_of_a_bins_edge_are_counted() -> None:
    assert calibration_error([[1.0, 0.0]], [0]) == 0.0
    assert calibration_error([[0.6, 0.4], [0.6, 0.4]], [0, 1]) == pytest.approx(0.1)


def test_numpys_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist()
    classification_metrics(PROBABILITIES, LABELS, NAMES, seed=0)
    assert np.random.get_state()[1].tolist() == before


def test_the_report_is_json() -> None:
    parts = json.loads(json.dumps(classification_metrics(PROBABILITIES, LABELS, NAMES, seed=0).as_dict()))
    assert parts["metrics"]["accuracy"].keys() == {"value", "low", "high", "n"}
    assert parts["confusion"][1] == [1, 1, 0]


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.5]], [0, 1], r"not \[rows, classes\]"),
        ([0.5, 0.5], [0, 1], r"not \[rows, classes\]"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "no rows"),
        ([[0.5, 0.3, 0.2]], [0], "3 classes, but there are 2 names"),
        ([[float("nan"), 0.5]], [0], "not a finite number"),
        ([[0.5, 0.5]], [2], "from 0 to 1"),
        ([[0.5, 0.5]], [-1], "from 0 to 1"),
        ([[0.5, 0.5]], [0.5], "from 0 to 1"),
    ],
)
def test_what_does_not_belong_together_is_refused(probabilities, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(probabilities, labels, ("a", "b"), seed=0)

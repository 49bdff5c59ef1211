"""Bootstrap intervals agree with scipy's and cover the truth as often as they say; McNemar equals its formula."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from finetune.evaluation.intervals import bootstrap, percentile_interval
from finetune.evaluation.metrics import classification_metrics
from finetune.evaluation.paired import mcnemar_p, paired_difference

pytestmark = pytest.mark.equivalence


def rows_of_a_classifier(seed: int, rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.5), rows)
    right = generator.random(rows) < 0.75
    return probabilities, np.where(right, probabilities.argmax(axis=1), generator.integers(0, classes, rows))


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("accuracy", lambda labels, predictions: np.mean(labels == predictions)),
        ("macro_f1", lambda labels, predictions: sk.f1_score(labels, predictions, average="macro", zero_division=0)),
    ],
)
def test_interval_agrees_with_scipy(name: str, statistic) -> None:
    probabilities, labels = rows_of_a_classifier(0, rows=400, classes=4)
    ours = classification_metrics(probabilities, labels, tuple("abcd"), seed=0).headline[name]
    theirs = stats.bootstrap(
        (labels, probabilities.argmax(axis=1)),
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    # The noise of a 2.5 % quantile of 1,000 resamples is about 2.7 / sqrt(1000) standard errors; 4 times that.
    noise = 4 * 2.7 / math.sqrt(1000) * theirs.standard_error
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=noise)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=noise)


def test_paired_interval_agrees_with_scipy_on_the_differences() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random(500) < 0.85, generator.random(500) < 0.8
    ours = paired_difference(a, b, seed=0)
    theirs = stats.bootstrap(
        (a.astype(float) - b,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    )
    noise = 4 * 2.7 / math.sqrt(2000) * theirs.standard_error
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=noise)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=noise)


def test_another_tasks_statistic_gets_the_interval_that_scipy_gives() -> None:
    """How a regression task brings a metric of its own: Pearson's r over resampled rows, vectorised."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=300)
    y = 0.8 * x + 0.6 * generator.normal(size=300)

    def pearson(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"pearson": stats.pearsonr(x[rows], y[rows], axis=1).statistic}

    low, high = percentile_interval(bootstrap(pearson, 300, seed=0)["pearson"])
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b, axis: stats.pearsonr(a, b, axis=axis).statistic,
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    noise = 4 * 2.7 / math.sqrt(2000) * theirs.standard_error
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=noise)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """300 test sets of 300 rows from a known population: 95 % of the intervals hold the known value."""
    truth, sets, rows = 0.8, 300, 300
    held = {"accuracy": 0, "macro_f1": 0, "mcc": 0, "gain": 0}
    for seed in range(sets):
        generator = np.random.default_rng(1000 + seed)
        labels = generator.integers(0, 2, rows)
        right = generator.random(rows) < truth
        weaker = np.where(generator.random(rows) < 0.5, right, generator.random(rows) < 0.7)
        headline = classification_metrics(
            np.eye(2)[np.where(right, labels, 1 - labels)], labels, ("a", "b"), seed
        ).headline
        # Balanced classes and errors that don't depend on the class: macro F1 is the accuracy, MCC is 2 x it - 1.
        for name, known in {"accuracy": truth, "macro_f1": truth, "mcc": 2 * truth - 1}.items():
            held[name] += headline[name].low <= known <= headline[name].high
        gain = paired_difference(right, weaker, seed)
        held["gain"] += gain.low <= 0.05 <= gain.high
    # Binomial noise of 300 sets is 1.3 points; a percentile bootstrap of 300 rows is a little too narrow.
    for name, count in held.items():
        assert 0.91 <= count / sets <= 0.985, (name, count / sets)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (5, 0), (12, 30), (7, 7), (250, 200)])
def test_mcnemar_equals_the_exact_formula(only_a: int, only_b: int) -> None:
    a = np.repeat([True, False, True], [only_a, only_b, 10])
    b = np.repeat([False, True, True], [only_a, only_b, 10])
    # statsmodels' mcnemar(exact=True): twice the lower tail of a fair coin over the rows where one alone is right.
    n, k = only_a + only_b, min(only_a, only_b)
    p = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar_p(a, b) == pytest.approx(p, rel=1e-9)

"""Regression metrics against SciPy and scikit-learn, their intervals and gains, and what the judge says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from finetune.evaluation.regression import RegressionJudge, correlation_gain, regression_metrics, regression_values

pytestmark = pytest.mark.unit

GENERATOR = np.random.default_rng(0)
TRUE = np.round(GENERATOR.uniform(0, 5, 200), 1)  # with ties
PREDICTED = TRUE + GENERATOR.normal(0, 1, 200)


def test_values_are_scipys_and_scikit_learns() -> None:
    values = regression_values(PREDICTED, TRUE)
    assert values["pearson"] == pytest.approx(stats.pearsonr(PREDICTED, TRUE).statistic, abs=1e-12)
    assert values["spearman"] == pytest.approx(stats.spearmanr(PREDICTED, TRUE).statistic, abs=1e-12)
    assert values["mse"] == pytest.approx(metrics.mean_squared_error(TRUE, PREDICTED), abs=1e-12)
    assert values["mae"] == pytest.approx(metrics.mean_absolute_error(TRUE, PREDICTED), abs=1e-12)


def test_intervals_are_near_scipys_bootstrap() -> None:
    found = regression_metrics(PREDICTED, TRUE, seed=1)
    for name, statistic in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        expected = stats.bootstrap(
            (PREDICTED, TRUE), lambda x, y, statistic=statistic: statistic(x, y).statistic, paired=True,
            vectorized=False, n_resamples=500, method="percentile", rng=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip
        assert found[name].low == pytest.approx(expected.low, abs=0.015)
        assert found[name].high == pytest.approx(expected.high, abs=0.015)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_constant_prediction_has_no_correlation_and_a_tiny_one_has(scale: float) -> None:
    assert regression_values(np.full(200, 0.1), TRUE)["pearson"] == 0.0
    assert regression_values(PREDICTED * scale, TRUE)["pearson"] == pytest.approx(
        stats.pearsonr(PREDICTED, TRUE).statistic
    )


def test_the_gain_is_paired_and_has_a_sign() -> None:
    worse = TRUE + GENERATOR.normal(0, 3, 200)
    gain = correlation_gain(PREDICTED, worse, TRUE, 3)
    expected = stats.pearsonr(PREDICTED, TRUE).statistic - stats.pearsonr(worse, TRUE).statistic
    assert gain.value == pytest.approx(expected)
    assert 0 < gain.low < gain.value < gain.high
    assert gain.p < 0.01
    back = correlation_gain(worse, PREDICTED, TRUE, 3)
    assert (back.value, back.p) == (pytest.approx(-gain.value), gain.p)
    assert correlation_gain(PREDICTED, PREDICTED, TRUE, 3).p == 1.0


def test_the_judge_says_what_the_metrics_say() -> None:
    judge = RegressionJudge({"test": TRUE}, seed=1)
    outputs = PREDICTED[:, None]
    assert judge.quick("test", outputs) == regression_values(PREDICTED, TRUE)
    assert judge.best_metric in judge.quick("test", outputs)
    told = judge.judge("test", outputs)["metrics"]
    assert told == {name: value.as_dict() for name, value in regression_metrics(PREDICTED, TRUE, 1).items()}
    assert np.array_equal(judge.columns("test", outputs)["prediction"], PREDICTED)


@pytest.mark.parametrize("bad", [PREDICTED[:5], np.full(200, np.nan), PREDICTED[:, None]])
def test_what_can_not_be_scored_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"rows|finite"):
        regression_values(bad, TRUE)

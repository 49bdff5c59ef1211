"""The bootstrap: deterministic, paired between statistics, and open to statistics of one's own."""

import numpy as np
import pytest

from finetune.evaluation import intervals
from finetune.evaluation.intervals import Interval, basic_interval, bootstrap, percentile_interval

pytestmark = pytest.mark.unit


def test_all_statistics_see_the_same_resamples() -> None:
    values = np.random.default_rng(0).normal(size=50)
    samples = bootstrap(lambda rows: {"mean": values[rows].mean(axis=1), "twice": 2 * values[rows].mean(axis=1)}, 50, 0)
    assert samples["mean"].shape == (2000,)
    np.testing.assert_allclose(samples["twice"], 2 * samples["mean"], rtol=1e-15)


def test_chunks_do_not_change_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=30)
    whole = bootstrap(lambda rows: {"mean": values[rows].mean(axis=1)}, 30, 0)
    monkeypatch.setattr(intervals, "CHUNK_CELLS", 100)
    chunked = bootstrap(lambda rows: {"mean": values[rows].mean(axis=1)}, 30, 0)
    np.testing.assert_array_equal(whole["mean"], chunked["mean"])


def test_rows_are_drawn_with_replacement_and_each_as_often() -> None:
    drawn = []
    bootstrap(lambda rows: drawn.append(rows) or {"any": rows[:, 0]}, 10, 0)  # type: ignore[func-returns-value]
    rows = np.concatenate(drawn)
    assert rows.shape == (2000, 10)
    assert any(len(set(row)) < 10 for row in rows.tolist())
    assert np.bincount(rows.ravel(), minlength=10) == pytest.approx(np.full(10, 2000), abs=5 * 2000**0.5)


def test_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        bootstrap(lambda rows: {}, 0, 0)


def test_percentile_and_basic_mirror_each_other() -> None:
    samples = np.linspace(0.5, 0.6, 1001)
    assert percentile_interval(samples) == pytest.approx((0.5025, 0.5975))
    assert basic_interval(0.54, samples) == pytest.approx((0.4825, 0.5775))


def test_basic_interval_holds_the_value_and_no_negative_number() -> None:
    low, high = basic_interval(0.01, np.linspace(0.02, 0.04, 1001))
    assert (low, high) == (0.0, 0.01)


def test_interval_as_dict() -> None:
    assert Interval(0.5, 0.4, 0.6, 10).as_dict() == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}

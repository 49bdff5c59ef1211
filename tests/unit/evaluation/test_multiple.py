"""Holm's correction and comparisons of several models: by hand, and by an independent computation."""

import numpy as np
import pytest

from finetune.errors import DataError
from finetune.evaluation.metrics import classification_values
from finetune.evaluation.multiple import bootstrap_p, compare_all, holm
from finetune.evaluation.paired import accuracy_gain
from finetune.evaluation.stored import Stored, joined

pytestmark = pytest.mark.unit


def model(rights: float, seed: int, rows: int = 600) -> Stored:
    """Answers of which a share is right; the truths are the same for every seed."""
    labels = np.random.default_rng(0).integers(0, 3, rows)
    wrong = np.random.default_rng(seed + 1).random(rows) >= rights
    return Stored("classes", tuple(map(str, range(rows))), labels, (labels + wrong) % 3, ("a", "b", "c"))


def test_holm_by_hand() -> None:
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 stays at the 0.06 before it, 0.5 x 1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_holm_rejects_what_the_step_down_rule_rejects() -> None:
    generator = np.random.default_rng(3)
    for _ in range(200):
        p = generator.random(7) ** 4
        rejected = set()
        for step, index in enumerate(np.argsort(p)):  # the rule as Holm wrote it, without adjusted p-values
            if p[index] >= 0.05 / (7 - step):
                break
            rejected.add(int(index))
        assert {int(index) for index in np.flatnonzero(holm(p) < 0.05)} == rejected


def test_p_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        holm([0.5, 1.2])


def test_single_runs_have_mcnemars_p_and_the_paired_interval() -> None:
    a, b = model(0.9, 1), model(0.8, 2)
    slips = np.where(np.arange(600) < 3, a.labels + 1, a.predictions) % 3
    c = Stored("classes", a.ids, a.labels, slips, a.names)
    pairs = compare_all([[a], [b], [c]], "accuracy", seed=0)
    gain = accuracy_gain(a.row_scores(), b.row_scores(), 0)
    assert [(pair.a, pair.b) for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    assert pairs[0].value == pytest.approx(gain.value)
    assert (pairs[0].low, pairs[0].high) == pytest.approx((gain.low, gain.high), abs=0.005)
    assert pairs[0].p == gain.p < pairs[0].p_holm == pytest.approx(3 * gain.p)
    assert [pair.verdict for pair in pairs] == ["better", "not distinguishable", "worse"]


def test_swapping_models_swaps_the_verdict() -> None:
    a, b = model(0.9, 1), model(0.8, 2)
    assert compare_all([[b], [a]], "macro_f1", 0)[0].verdict == "worse"
    assert compare_all([[a], [b]], "macro_f1", 0)[0].verdict == "better"


def test_noise_between_seeds_widens_the_interval() -> None:
    steady = [[model(0.85, seed) for seed in (1, 2, 3)], [model(0.80, seed) for seed in (4, 5, 6)]]
    noisy = [[model(share, 1) for share in (0.95, 0.85, 0.75)], [model(0.80, seed) for seed in (4, 5, 6)]]
    (one,), (other,) = compare_all(steady, "accuracy", 0), compare_all(noisy, "accuracy", 0)
    assert one.high - one.low < other.high - other.low
    assert (one.verdict, other.verdict) == ("better", "not distinguishable")


def test_models_that_agree_everywhere_are_not_distinguishable() -> None:
    (pair,) = compare_all([[model(0.8, 1)], [model(0.8, 1)]], "mcc", 0)
    assert (pair.value, pair.p, pair.verdict) == (0.0, 1.0, "not distinguishable")


def test_a_bootstrap_p_is_never_zero() -> None:
    assert bootstrap_p(np.ones(1999)) == pytest.approx(2 / 2000)
    assert bootstrap_p(np.array([-1.0, 1.0])) == 1.0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "weighted_f1", "macro_precision", "macro_recall", "mcc"])
def test_metrics_of_stored_answers_equal_the_runs_own(metric: str) -> None:
    stored = model(0.7, 5)
    values = classification_values(np.eye(3)[stored.predictions], stored.labels, stored.names)
    assert stored.value(metric) == pytest.approx(values[metric], abs=1e-12)


def test_correlations_equal_scipys() -> None:
    from scipy import stats

    true, noise = np.random.default_rng(1).integers(0, 6, (2, 300)).astype(float)
    stored = Stored("numbers", tuple(map(str, range(300))), true, true + noise)
    assert stored.value("pearson") == pytest.approx(stats.pearsonr(true, true + noise).statistic, abs=1e-12)
    assert stored.value("spearman") == pytest.approx(stats.spearmanr(true, true + noise).statistic, abs=1e-12)
    assert stored.value("mse") == pytest.approx(np.mean(noise**2))


def test_lower_is_better_for_losses() -> None:
    sizes = np.column_stack([np.full(40, 10.0), np.full(40, 12.0)])
    loss = np.random.default_rng(0).random(40) + 10
    ids = tuple(map(str, range(40)))
    a, b = Stored("documents", ids, sizes, loss), Stored("documents", ids, sizes, loss + 2)
    (pair,) = compare_all([[a], [b]], "perplexity", 0)
    assert pair.value < 0
    assert pair.verdict == "better"


def test_rows_are_joined_by_id_and_other_rows_refused() -> None:
    a = model(0.9, 1)
    turned = Stored("classes", a.ids[::-1], a.labels[::-1], a.predictions[::-1], a.names)
    assert np.array_equal(joined(a, turned, ("a", "b")).predictions, a.predictions)
    fewer = Stored("classes", a.ids[1:], a.labels[1:], a.predictions[1:], a.names)
    with pytest.raises(DataError, match="different test rows"):
        joined(a, fewer, ("a", "b"))
    with pytest.raises(DataError, match="other truths"):
        joined(a, Stored("classes", a.ids, (a.labels + 1) % 3, a.predictions, a.names), ("a", "b"))

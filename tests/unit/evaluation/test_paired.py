"""Paired comparison of two models on the same rows."""

import numpy as np
import pytest

from finetune.evaluation.paired import accuracy_gain, mcnemar_p, paired_difference

pytestmark = pytest.mark.unit


def rows(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


def test_difference_and_p_by_hand() -> None:
    a, b = rows(both=70, only_a=6, only_b=0, neither=24)
    difference = paired_difference(a, b, seed=0)
    assert difference.value == pytest.approx(0.06)
    assert difference.n == 100
    assert 0 < difference.low < 0.06 < difference.high
    assert mcnemar_p(a, b) == pytest.approx(2 * 0.5**6)


def test_swapping_the_models_mirrors_the_value_and_keeps_p() -> None:
    a, b = rows(both=50, only_a=30, only_b=12, neither=8)
    assert paired_difference(b, a, seed=0).value == pytest.approx(-paired_difference(a, b, seed=0).value)
    assert mcnemar_p(a, b) == mcnemar_p(b, a) < 0.05


def test_models_that_agree_everywhere_do_not_differ() -> None:
    a, _ = rows(both=5, only_a=0, only_b=0, neither=5)
    assert paired_difference(a, a, seed=0)[:3] == (0.0, 0.0, 0.0)
    assert mcnemar_p(a, a) == 1.0


def test_pairing_makes_the_interval_narrower_than_independent_samples() -> None:
    a, b = rows(both=800, only_a=30, only_b=10, neither=160)
    difference = paired_difference(a, b, seed=0)
    independent = 2 * 1.96 * np.sqrt(a.var() / 1000 + b.var() / 1000)
    assert difference.high - difference.low < 0.5 * independent


def test_scores_that_are_no_booleans() -> None:
    generator = np.random.default_rng(0)
    b = generator.normal(size=400)
    a = b + 0.1 + 0.2 * generator.normal(size=400)
    difference = paired_difference(a, b, seed=0)
    assert difference.value == pytest.approx((a - b).mean())
    half = 1.96 * (a - b).std() / 20
    assert (difference.low, difference.high) == pytest.approx(
        (difference.value - half, difference.value + half), abs=0.1 * half
    )


def test_gain_is_an_entry_of_the_record() -> None:
    a, b = rows(both=70, only_a=6, only_b=0, neither=24)
    gain = accuracy_gain(a, b, seed=0).as_dict()
    assert gain.keys() == {"metric", "value", "low", "high", "n", "p"}
    assert (gain["metric"], gain["n"]) == ("accuracy", 100)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([], [], "no rows"), ([True], [True, False], "same rows"), ([1.0], [float("nan")], "not a finite number")],
)
def test_what_cannot_be_compared_is_refused(a: list, b: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b, seed=0)

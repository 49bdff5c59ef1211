"""Slices: which rows belong to which part, and the part's score."""

import numpy as np
import pytest

from finetune.evaluation.stored import Stored
from finetune.slices import sliced

pytestmark = pytest.mark.unit

LABELS = np.arange(100) % 2
STORED = Stored("classes", tuple(map(str, range(100))), LABELS, np.where(np.arange(100) < 50, LABELS, 0), ("a", "b"))


def test_numbers_are_cut_into_four_parts_that_hold_every_row_once() -> None:
    parts = sliced(STORED, [float(number) for number in range(100)], "accuracy", 0)
    assert list(parts) == ["0 to 24", "25 to 49", "50 to 74", "75 to 99"]
    assert [part.n for part in parts.values()] == [25] * 4
    assert [part.value for part in parts.values()] == pytest.approx([1.0, 1.0, 13 / 25, 12 / 25])


def test_equal_numbers_stay_together() -> None:
    parts = sliced(STORED, [1.0] * 80 + [float(number) for number in range(2, 22)], "accuracy", 0)
    assert sum(part.n for part in parts.values()) == 100
    assert parts["1"].n == 80


def test_a_few_values_are_parts_of_their_own_and_all_right_has_an_exact_interval() -> None:
    parts = sliced(STORED, ["x"] * 10 + ["y"] * 90, "accuracy", 0)
    assert list(parts) == ["x", "y"]
    assert parts["x"].low == pytest.approx(0.025 ** (1 / 10))  # Clopper-Pearson for 10 of 10
    assert (parts["x"].value, parts["x"].high) == (1.0, 1.0)
    assert parts["y"].low < parts["y"].value < parts["y"].high

"""Few-shot draws: so many rows of each class, the same ones for the same seed, whatever else is asked."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from finetune.data.loader import LoadedData
from finetune.data.shots import draw_shots
from finetune.errors import DataError

pytestmark = pytest.mark.unit


def loaded(labels: list[int], names: tuple[str, ...] = ("a", "b", "c")) -> LoadedData:
    rows = {"id": [str(row) for row in range(len(labels))], "text": ["x"] * len(labels), "label": labels}
    splits = {name: datasets.Dataset.from_dict(rows) for name in ("train", "valid", "test")}
    return LoadedData("some", None, splits, names, "0" * 64, ("a note",))


LABELS = [0] * 20 + [1] * 30 + [2] * 3


def drawn(seed: int, shots: int = 8) -> LoadedData:
    return draw_shots(loaded(LABELS), shots, seed)


def test_each_class_gives_its_rows_and_a_small_one_all_that_it_has_aloud() -> None:
    data = drawn(0)
    assert np.bincount(data.splits["train"]["label"]).tolist() == [8, 8, 3]
    assert data.notes[0] == "a note"
    assert "19 rows, 8 of each class, drawn by the seed 0" in data.notes[1]
    assert "fewer than 8 rows stand under c 3" in data.notes[2]
    assert [len(data.splits[name]) for name in ("valid", "test")] == [53, 53]


def test_a_seed_draws_the_same_rows_and_another_others() -> None:
    ids = [drawn(seed).splits["train"]["id"][:] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == len(ids[0])


def test_fewer_shots_are_some_of_more() -> None:
    assert set(drawn(3, 2).splits["train"]["id"][:]) < set(drawn(3, 8).splits["train"]["id"][:])


def test_nothing_asked_nothing_changed() -> None:
    data = loaded(LABELS)
    assert draw_shots(data, None, 0) is data


def test_a_class_without_a_row_is_named() -> None:
    with pytest.raises(DataError, match="no training row of the class 'b'"):
        draw_shots(loaded([0, 0, 2], ("a", "b", "c")), 2, 0)

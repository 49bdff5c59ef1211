"""The parts of a text classifier that need no model: rows by index, notes on what is cut, label names."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.batching import BatchPlan, RowKey
from finetune.data.tokens import TokenRows
from finetune.estimate import _computed_tokens, _duration, _padding
from finetune.task import SomeRows
from finetune.text_classification import label_maps, truncation_notes

pytestmark = pytest.mark.unit


def rows(lengths: list[int], truncated: list[bool], labels: list[int] | None) -> TokenRows:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    known = None if labels is None else np.array(labels)
    return TokenRows({"input_ids": np.arange(offsets[-1])}, offsets, np.array(truncated), known)


def test_some_rows_are_those_rows_in_that_order() -> None:
    some = SomeRows(rows([2, 1, 3], [False] * 3, [0, 1, 0]), np.array([2, 0]))
    assert len(some) == 2
    assert some.lengths.tolist() == [3, 2]
    found = some.__getitems__([RowKey(0, 1), RowKey(0, 0)])
    assert [row["input_ids"].tolist() for row in found] == [[0, 1], [3, 4, 5]]


def test_notes_say_how_many_rows_are_cut_and_of_which_classes() -> None:
    split = rows([8] * 5, [True, True, True, False, False], [1, 1, 0, 0, 1])
    assert truncation_notes({"train": split}, ("no", "yes"), 8) == [
        "train: 3 rows (60.0%) are longer than data.max_tokens=8 and are cut there (yes 2, no 1)"
    ]
    assert truncation_notes({"train": rows([1], [False], [0])}, ("no", "yes"), 8) == []


def test_labels_in_the_models_configuration_keep_their_order() -> None:
    assert label_maps(("b", "a")) == {"num_labels": 2, "id2label": {0: "b", 1: "a"}, "label2id": {"b": 0, "a": 1}}


def test_padding_of_a_plan_by_hand() -> None:
    lengths = np.array([1, 4])
    both = [RowKey(0, 0), RowKey(0, 1)]
    assert _computed_tokens(both, BatchPlan(2, None, 2, 1.0, 0), lengths) == 8
    assert _computed_tokens(both, BatchPlan(2, None, 2, 1.0, 0), None) == 2
    # Rows of 600 tokens are groups of one: an update of both pads nothing.
    assert _computed_tokens(both, BatchPlan(2, np.array([600, 900]), 2, 1.0, 0), np.array([600, 900])) == 1500
    assert _padding(BatchPlan(2, None, 2, 1.0, 0), None, lengths) == pytest.approx(3 / 8)
    assert _padding(BatchPlan(2, None, 1, 1.0, 0), None, lengths) == 0.0


def test_durations_are_read_at_a_glance() -> None:
    assert [_duration(seconds) for seconds in (0.24, 9.96, 59.4, 60, 3599, 7380)] == [
        "0.2 s", "10 s", "59 s", "1 min 0 s", "59 min 59 s", "2 h 3 min",
    ]  # fmt: skip

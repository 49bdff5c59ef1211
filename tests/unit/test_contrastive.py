"""Contrastive pairs: which texts meet, the batch that they make, and the loss that is minimised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.contrastive import PairRows, cosine_error_sum, pad_texts_or_pairs, setfit_pairs
from finetune.data.batching import RowKey
from finetune.data.tokens import TokenRows
from finetune.errors import DataError

pytestmark = pytest.mark.unit

LABELS = np.array([0, 0, 0, 1, 1, 2])


def test_every_text_meets_its_own_class_and_another_once_a_round() -> None:
    pairs = setfit_pairs(LABELS, 20, 0)
    assert pairs.shape == (2 * 20 * 6, 3)
    assert np.array_equal(LABELS[pairs[:, 0]] == LABELS[pairs[:, 1]], pairs[:, 2] == 1)
    assert np.bincount(pairs[pairs[:, 2] == 1, 0]).tolist() == [20] * 6
    assert np.bincount(pairs[pairs[:, 2] == 0, 0]).tolist() == [20] * 6
    partners = {first: set(pairs[(pairs[:, 0] == first) & (pairs[:, 2] == 1), 1].tolist()) for first in range(6)}
    assert partners == {0: {0, 1, 2}, 1: {0, 1, 2}, 2: {0, 1, 2}, 3: {3, 4}, 4: {3, 4}, 5: {5}}


def test_pairs_are_functions_of_seed_round_and_text() -> None:
    assert np.array_equal(setfit_pairs(LABELS, 3, 0), setfit_pairs(LABELS, 20, 0)[: 2 * 3 * 6])
    assert not np.array_equal(setfit_pairs(LABELS, 3, 0), setfit_pairs(LABELS, 3, 1))


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="two classes"):
        setfit_pairs(np.array([1, 1]), 20, 0)


def test_a_batch_has_first_texts_then_second_ones() -> None:
    ids = np.array([5, 6, 7, 8, 9, 10], dtype=np.int32)
    texts = TokenRows({"input_ids": ids}, np.array([0, 2, 3, 6]), np.zeros(3, bool), np.array([0, 0, 1]))
    rows = PairRows(texts, np.array([[0, 1, 1], [2, 0, 0]]))
    assert rows.lengths.tolist() == [2, 3]
    batch = pad_texts_or_pairs(rows.__getitems__([RowKey(0, 0), RowKey(0, 1)]), 0)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [8, 9, 10], [7, 0, 0], [5, 6, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 3, 1, 2]
    assert batch["same"].tolist() == [1.0, 0.0]
    alone = pad_texts_or_pairs(texts.__getitems__([RowKey(0, 1), RowKey(0, 2)]), 0)
    assert alone["input_ids"].tolist() == [[7, 0, 0], [8, 9, 10]]
    assert alone["labels"].tolist() == [0, 1]


def test_the_loss_is_the_squared_error_of_the_cosine_by_hand() -> None:
    generator = np.random.default_rng(0)
    hidden, mask = generator.normal(size=(4, 3, 5)), np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    means = [hidden[row, : mask[row].sum()].mean(0) for row in range(4)]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(means[:2], means[2:], strict=True)]
    expected = (cosines[0] - 1) ** 2 + cosines[1] ** 2
    found = cosine_error_sum(torch.tensor(hidden), torch.tensor(mask), torch.tensor([1.0, 0.0]))
    assert float(found) == pytest.approx(expected, rel=1e-5)

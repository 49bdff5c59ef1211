"""The judge of masked tokens: sums by document, divided last; gains under the same masks."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.masking import MaskedBlocks, MaskingRule
from finetune.evaluation.masked import MaskedJudge

pytestmark = pytest.mark.unit

DOCUMENT = np.array([0, 0, 2, 3, 3, 3])  # document 1 has no block
RULE = MaskingRule(2, np.arange(5, 9), np.zeros(9, bool), 0.15, 0)
EDGES = np.arange(7) * 4
BLOCKS = MaskedBlocks(np.arange(24), EDGES[:-1], EDGES[1:], DOCUMENT, [], [], RULE, True)
JUDGE = MaskedJudge({"test": BLOCKS}, seed=1)
OUTPUTS = np.array([[2.0, 1, 2], [1.0, 1, 1], [6.0, 0, 3], [1.0, 0, 1], [1.0, 1, 1], [1.0, 1, 2]])


def test_scores_are_sums_over_sums() -> None:
    told = JUDGE.judge("test", OUTPUTS)["metrics"]
    assert told["masked_loss"]["value"] == pytest.approx(12 / 10)
    assert told["masked_perplexity"]["value"] == pytest.approx(np.exp(1.2))
    assert told["masked_accuracy"]["value"] == pytest.approx(0.4)
    assert told["masked_loss"]["n"] == 3
    assert told["masked_loss"]["low"] <= 1.2 <= told["masked_loss"]["high"]
    quick = JUDGE.quick("test", OUTPUTS)
    assert quick["log_likelihood"] == pytest.approx(-1.2)
    assert JUDGE.best_metric in quick


def test_the_gain_is_the_fall_of_perplexity() -> None:
    before = OUTPUTS + np.array([0.5, 0, 0])
    gain = JUDGE.gain("test", OUTPUTS, before)
    assert gain["value"] == pytest.approx(1 - np.exp(1.2) / np.exp(1.5))
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert JUDGE.gain("test", OUTPUTS, OUTPUTS)["p"] == 1.0


def test_columns_are_sums_of_documents() -> None:
    columns = JUDGE.columns("test", OUTPUTS)
    assert columns["loss_sum"].tolist() == [3.0, 6.0, 3.0]
    assert columns["masked_tokens"].tolist() == [3, 3, 4]

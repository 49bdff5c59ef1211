"""Perplexity and bits per byte against a calculation by hand, and the gain's direction."""

import math

import numpy as np
import pytest

from finetune.data.blocks import pack
from finetune.data.tokens import TokenRows
from finetune.evaluation.language import DocumentLosses, LanguageModelJudge, language_metrics, perplexity_reduction

pytestmark = pytest.mark.unit


def judge(sizes: list[int], text_bytes: list[int], width: int = 4, across: bool = False) -> LanguageModelJudge:
    tokens = TokenRows(
        {"input_ids": np.arange(sum(sizes), dtype=np.int32) + 10},
        np.concatenate([[0], np.cumsum(sizes)]),
        np.zeros(len(sizes), bool),
    )
    blocks = pack(tokens, width, before=2, end=2, across=across)
    return LanguageModelJudge({"test": blocks}, {"test": np.array(text_bytes)}, seed=0)


def documents(loss: list[float], tokens: list[int], text_bytes: list[int]) -> DocumentLosses:
    return DocumentLosses(np.array(loss), np.array(tokens, float), np.array(text_bytes, float))


@pytest.mark.parametrize("across", [False, True])
def test_losses_come_to_the_document_they_belong_to(across: bool) -> None:
    some = judge([6, 3], [20, 10], across=across)
    documents_RT = some.blocks["test"].documents()
    # Beyond a block's end stands what must not be counted.
    losses = np.where(documents_RT >= 0, np.where(documents_RT == 0, 2.0, 0.5), 1e9)
    found = some.documents("test", losses)
    assert found.loss.tolist() == [7 * 2.0, 4 * 0.5]
    assert found.tokens.tolist() == [7, 4]
    quick = some.quick("test", losses)
    assert quick["loss"] == pytest.approx(16 / 11)
    assert quick["perplexity"] == pytest.approx(math.exp(16 / 11))
    assert quick["bits_per_byte"] == pytest.approx(16 / math.log(2) / 30)
    assert quick[some.best_metric] == -quick["loss"]
    columns = some.columns("test", losses)
    assert columns["perplexity"].tolist() == pytest.approx([math.exp(2.0), math.exp(0.5)])


def test_intervals_are_over_documents() -> None:
    same = language_metrics(documents([30.0, 60.0, 90.0], [10, 20, 30], [40, 80, 120]), seed=0)
    assert same["perplexity"] == pytest.approx((math.exp(3), math.exp(3), math.exp(3), 3))
    assert same["bits_per_byte"].value == pytest.approx(0.75 / math.log(2))
    mixed = language_metrics(documents([10.0, 80.0, 90.0], [10, 20, 30], [40, 80, 120]), seed=0)
    # Three equal documents of the lowest or highest loss are drawn in 1 of 27 resamples, so both are in the interval.
    assert mixed["loss"].low == pytest.approx(1.0)
    assert mixed["loss"].high == pytest.approx(4.0)


def test_a_lower_perplexity_is_a_positive_gain() -> None:
    before = documents([30.0, 62.0, 95.0, 33.0, 41.0, 52.0], [10, 20, 30, 10, 12, 16], [1] * 6)
    after = before._replace(loss=before.loss - 0.2 * before.tokens)
    gain = perplexity_reduction(after, before, seed=0)
    assert gain.value == pytest.approx(1 - math.exp(-0.2))
    assert gain.low == pytest.approx(gain.value)
    assert gain.p == pytest.approx(2 / 2**6)  # six of six: the exact test's smallest value
    assert perplexity_reduction(before, after, seed=0).value == pytest.approx(1 - math.exp(0.2))
    assert perplexity_reduction(before, before, seed=0).p == 1.0

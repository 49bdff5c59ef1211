"""Windows of words: every word judged once and in the window with most context, targets on first sub-words only."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.batching import RowKey
from finetune.data.windows import IGNORE, Windows, make_windows, pad_windows
from finetune.errors import ConfigError
from tests.unit.data.word_pieces import word_pieces

pytestmark = pytest.mark.unit

TOKENIZER = word_pieces(["a", "b", "##x", "[CLS]", "[SEP]"])
WORDS = st.lists(st.integers(0, 5).map(lambda more: "a" + "x" * more), min_size=1, max_size=60)


def ids_of(word: str) -> list[int]:
    return TOKENIZER(word, add_special_tokens=False)["input_ids"]


@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(0, 13))
@settings(max_examples=60, deadline=None)
def test_every_word_stands_once_where_it_is_judged(sentences: list[list[str]], overlap: int) -> None:
    words = [word for sentence in sentences for word in sentence]
    tags = [[(7 * at) % 3 for at in range(len(sentence))] for sentence in sentences]
    windows = make_windows(sentences, tags, TOKENIZER, 16, overlap)
    assert windows.lengths.max() <= 16
    rows = windows.__getitems__([RowKey(0, row) for row in range(len(windows))])
    assert sum(int((row["labels"] != IGNORE).sum()) for row in rows) == len(words)
    assert {*windows.token_ids.tolist()} == {some for row in rows for some in row["input_ids"].tolist()}
    batch = pad_windows(rows, 0)
    assert windows.of_words(batch["labels"].numpy()).tolist() == list(itertools.chain(*tags))
    firsts = windows.of_words(batch["input_ids"].numpy())
    assert firsts.tolist() == [ids_of(word)[0] for word in words]
    assert [len(some) for some in windows.by_sentence(firsts)] == [len(sentence) for sentence in sentences]
    assert batch["attention_mask"].sum(1).tolist() == windows.lengths.tolist()


def test_a_word_in_two_windows_belongs_to_the_one_with_more_context() -> None:
    windows = make_windows([["a"] * 20], None, TOKENIZER, 14, 4)  # 12 words a window, 4 in both
    assert windows.lengths.tolist() == [14, 14]
    assert windows.owner.tolist() == [0] * 10 + [1] * 10
    assert windows.position.tolist() == [*range(1, 11), *range(3, 13)]


def test_without_a_long_sentence_each_is_one_row() -> None:
    windows = make_windows([["a", "bx"], ["b"]], None, TOKENIZER, 16, 4)
    assert len(windows) == windows.sentences == 2
    assert "labels" not in windows.__getitems__([RowKey(0, 0)])[0]


def test_long_and_unknown_words_keep_their_place() -> None:
    windows = make_windows([["a" + "x" * 40, "b"], ["\u200b", "a"]], [[1, 0], [2, 0]], TOKENIZER, 16, 4)
    assert windows.cut_words == 1
    rows = windows.__getitems__([RowKey(0, row) for row in range(len(windows))])
    batch = pad_windows(rows, 0)
    assert windows.of_words(batch["labels"].numpy()).tolist() == [1, 0, 2, 0]
    assert windows.of_words(batch["input_ids"].numpy())[2] == TOKENIZER.unk_token_id


def test_an_overlap_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.overlap_tokens=14 leaves nothing"):
        make_windows([["a"]], None, TOKENIZER, 16, 14)


def test_the_judged_values_are_picked_by_row_and_place() -> None:
    windows = Windows(
        np.zeros(4, np.int32), np.array([0, 2, 4]), np.array([3]), np.array([0, 0, 1]), np.array([0, 1, 1]), None, 0
    )
    assert windows.of_words(np.array([[5, 6], [7, 8]])).tolist() == [5, 6, 8]

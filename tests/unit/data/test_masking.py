"""Masks: a function of (seed, epoch, index), of the right share and kinds, over whole words; blocks lose no token."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.batching import RowKey
from finetune.data.masking import IGNORE, MaskedBlocks, MaskingRule, mask, mask_blocks, masking_rule
from finetune.data.tokens import TokenRows
from finetune.errors import ConfigError
from finetune.randomness import numpy_generator
from tests.unit.data.word_pieces import word_pieces

pytestmark = pytest.mark.unit

LETTERS = [*"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]
TOKENIZER = word_pieces(LETTERS)
FRONT, BACK = [3], [4]


def rule(whole_words: bool, share: float = 0.15, seed: int = 0) -> MaskingRule:
    return masking_rule(TOKENIZER, len(TOKENIZER), share, whole_words, seed)


def blocks(documents: list[list[int]], *, fixed: bool, whole_words: bool = True, seed: int = 0) -> MaskedBlocks:
    whole = [[*FRONT, *document, *BACK] for document in documents]
    offsets = np.concatenate([[0], np.cumsum([len(some) for some in whole])])
    tokens = TokenRows({"input_ids": np.concatenate(whole)}, offsets, np.zeros(len(whole), bool))
    return mask_blocks(tokens, 34, FRONT, BACK, rule(whole_words, seed=seed), fixed=fixed)


def random_ids(count: int) -> list[int]:
    return np.random.default_rng(count).integers(5, 5 + len(LETTERS), size=count).tolist()


def test_blocks_lose_no_token_and_cross_no_end() -> None:
    documents = [random_ids(size) for size in (1, 31, 32, 33, 100, 700)]
    some = blocks(documents, fixed=True)
    assert some.lengths.max() <= 34
    for number, document in enumerate(documents):
        rows = np.flatnonzero(some.document == number)
        assert np.concatenate([some.ids[some.starts[row] : some.ends[row]] for row in rows]).tolist() == document
    assert some.lengths[some.document == 5].min() > 20  # no stump at a document's end


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_differ_by_epoch_index_and_seed_and_by_nothing_else(whole_words: bool) -> None:
    documents = [random_ids(32)] * 2
    train, valid = (blocks(documents, fixed=fixed, whole_words=whole_words) for fixed in (False, True))

    def seen(some: MaskedBlocks, *key: int) -> tuple[bytes, bytes]:
        (row,) = some.__getitems__([RowKey(*key)])
        return row["input_ids"].tobytes(), row["labels"].tobytes()

    assert seen(train, 1, 0) == seen(train, 1, 0)
    other = blocks(documents, fixed=False, whole_words=whole_words, seed=1)
    assert len({seen(train, 0, 0), seen(train, 1, 0), seen(train, 0, 1), seen(other, 0, 0)}) == 4
    assert seen(valid, 0, 0) == seen(valid, 3, 0) != seen(train, 0, 0)


def test_share_and_kinds_are_berts() -> None:
    some, ids = rule(False), np.array(random_ids(10_000))
    shown, labels = mask(ids, some, numpy_generator(0, "test"))
    asked = labels != IGNORE
    assert asked.sum() == 1500
    assert np.array_equal(labels[asked], ids[asked])
    assert np.array_equal(shown[~asked], ids[~asked])
    masked, same = shown[asked] == some.mask_id, shown[asked] == ids[asked]
    # A random token is by chance the same one in 16 cases.
    assert masked.mean() == pytest.approx(0.8, abs=0.03)
    assert same.mean() == pytest.approx(0.1 + 0.1 / 16, abs=0.03)
    assert shown[asked][~masked].min() >= 5


def test_whole_words_are_hidden_together() -> None:
    some, ids = rule(True), np.array(random_ids(2_000))
    _, labels = mask(ids, some, numpy_generator(0, "test"))
    words = np.cumsum(~some.continues[ids])
    asked = labels != IGNORE
    for word in np.unique(words):
        assert len(np.unique(asked[words == word])) == 1
    assert 290 <= asked.sum() <= 300


def test_words_begin_at_a_space_sign_where_no_piece_is_marked_as_inside() -> None:
    """RoBERTa's kind of tokenizer; a text's first word has no space before it."""
    tokenizer = word_pieces(["Ġa", "b", "Ġc", "d"])
    some = masking_rule(tokenizer, len(tokenizer), 0.5, True, 0)
    assert np.flatnonzero(some.continues).tolist() == [6, 8]
    ids = np.array([6, 8, 5, 6, 8, 7, 5, 8] * 20)
    _, labels = mask(ids, some, numpy_generator(0, "test"))
    words, asked = np.cumsum(~some.continues[ids]), labels != IGNORE
    assert 0 < asked.sum() <= 80
    assert all(len(np.unique(asked[words == word])) == 1 for word in np.unique(words))


def test_a_text_of_one_token_has_one_target() -> None:
    _, labels = mask(np.array([5]), rule(True), numpy_generator(0, "test"))
    assert (labels != IGNORE).sum() == 1


def test_what_can_not_be_masked_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective.whole_words=true needs a tokenizer"):
        masking_rule(word_pieces(["a", "b"]), 7, 0.15, True, 0)
    TOKENIZER_WITHOUT = word_pieces(["a", "##b"])
    TOKENIZER_WITHOUT.mask_token = None
    with pytest.raises(ConfigError, match="no mask token"):
        masking_rule(TOKENIZER_WITHOUT, 7, 0.15, False, 0)

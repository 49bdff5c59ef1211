"""Packing: every token a target exactly once, ends kept, nothing across documents unless asked."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.batching import BatchPlan, RowKey
from finetune.data.blocks import IGNORE, Blocks, RandomBlocks, pack, pad_blocks
from finetune.data.tokens import TokenRows

pytestmark = pytest.mark.unit

END = 2
# Token ids above END say where they are from: document * 1000 + place.
DOCUMENTS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def tokens(sizes: list[int]) -> TokenRows:
    ids = [1000 * (document + 1) + place for document, size in enumerate(sizes) for place in range(size)]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return TokenRows({"input_ids": np.array(ids, np.int32)}, offsets, np.zeros(len(sizes), bool))


def rows_of(blocks: Blocks) -> list[dict[str, np.ndarray]]:
    return blocks.__getitems__([RowKey(0, index) for index in range(len(blocks))])


@given(DOCUMENTS, st.integers(1, 16), st.booleans())
def test_every_token_and_every_end_is_a_target_exactly_once(sizes: list[int], width: int, across: bool) -> None:
    blocks = pack(tokens(sizes), width, before=END, end=END, across=across)
    counted = Counter(int(token) for row in rows_of(blocks) for token in row["targets"])
    assert counted == Counter([*tokens(sizes).columns["input_ids"].tolist(), *[END] * len(sizes)])
    assert max(len(row["targets"]) for row in rows_of(blocks)) <= width
    assert int(blocks.lengths.sum()) == sum(sizes) + len(sizes)


@given(DOCUMENTS, st.integers(1, 16), st.booleans())
def test_a_target_follows_its_input(sizes: list[int], width: int, across: bool) -> None:
    for row in rows_of(pack(tokens(sizes), width, before=END, end=END, across=across)):
        assert row["input_ids"][1:].tolist() == row["targets"][:-1].tolist()
        for one, after in zip(row["input_ids"].tolist(), row["targets"].tolist(), strict=True):
            assert after in (one + 1, END) or (one == END and after % 1000 == 0)


@given(DOCUMENTS, st.integers(1, 16))
def test_no_block_holds_two_documents(sizes: list[int], width: int) -> None:
    for row in rows_of(pack(tokens(sizes), width, before=END, end=END)):
        assert len({token // 1000 for token in [*row["input_ids"], *row["targets"]]} - {0}) <= 1


def test_across_documents_all_blocks_are_full_but_the_last() -> None:
    blocks = pack(tokens([5, 5, 5]), 4, before=END, end=END, across=True)
    assert blocks.lengths.tolist() == [4, 4, 4, 4, 2]
    assert pack(tokens([5, 5, 5]), 4, before=END, end=END).lengths.tolist() == [4, 2] * 3


def test_what_the_tokenizer_put_there_is_not_put_there_again() -> None:
    some = TokenRows({"input_ids": np.array([1, 7, 8, END], np.int32)}, np.array([0, 4]), np.zeros(1, bool))
    (row,) = rows_of(pack(some, 8, before=1, end=END))
    assert row["input_ids"].tolist() == [1, 7, 8]
    assert row["targets"].tolist() == [7, 8, END]


@given(DOCUMENTS, st.integers(1, 16), st.booleans())
def test_documents_of_targets(sizes: list[int], width: int, across: bool) -> None:
    blocks = pack(tokens(sizes), width, before=END, end=END, across=across)
    found = blocks.documents()
    for number, row in enumerate(rows_of(blocks)):
        size = len(row["targets"])
        assert (found[number, size:] == -1).all()
        for document, target in zip(found[number, :size], row["targets"], strict=True):
            assert target == END or document == target // 1000 - 1
    assert np.bincount(found[found >= 0]).tolist() == [size + 1 for size in sizes]


def test_padding_never_hides_a_real_end() -> None:
    """A tokenizer whose padding token is its end token: GPT-2's, as everybody sets it up."""
    batch = pad_blocks(rows_of(pack(tokens([3, 1]), 8, before=END, end=END)))
    assert batch["targets"].tolist() == [[1000, 1001, 1002, END], [2000, END, IGNORE, IGNORE]]
    assert batch["input_ids"].tolist() == [[END, 1000, 1001, 1002], [END, 2000, 0, 0]]


def test_random_blocks_are_a_function_of_epoch_and_index() -> None:
    blocks = RandomBlocks(pack(tokens([500]), 8, before=None, end=None, across=True), seed=3)
    keys = [RowKey(0, 5), RowKey(1, 5), RowKey(0, 6)]
    first, again = blocks.__getitems__(keys), blocks.__getitems__(keys[::-1])[::-1]
    assert [row["targets"].tolist() for row in first] == [row["targets"].tolist() for row in again]
    assert len({tuple(row["targets"]) for row in first}) == 3
    starts = [int(blocks.__getitems__([RowKey(epoch, 0)])[0]["input_ids"][0]) - 1000 for epoch in range(2000)]
    assert (min(starts), max(starts)) == (0, 500 - 9)  # every place where a whole block fits, ends included


def test_a_plan_over_blocks_visits_each_once_an_epoch() -> None:
    blocks = pack(tokens([30, 7, 19]), 8, before=END, end=END)
    plan = BatchPlan(len(blocks), blocks.lengths, 3, 1.0, seed=0)
    assert sorted(key.index for keys in plan.updates() for key in keys) == list(range(len(blocks)))

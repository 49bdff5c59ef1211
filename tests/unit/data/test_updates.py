"""What one process gets of an update: its own shards collated, and totals over all processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.batching import BatchPlan, RowKey
from finetune.data.tokens import TokenRows, pad_tokens
from finetune.data.updates import AUTO_TOKENS, Update, load_updates, micro_batch_rows

pytestmark = pytest.mark.unit


def toy_rows(lengths: list[int]) -> TokenRows:
    """Row i is `length` times the number i + 1, so that a batch shows whose tokens it holds."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return TokenRows({"input_ids": values}, offsets, np.zeros(len(lengths), bool), np.arange(len(lengths)))


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return pad_tokens(rows, 0)


def updates_of(
    plan: BatchPlan, rows: TokenRows, micro: int | str, rank: int = 0, world: int = 1, first: int = 0
) -> list[Update]:
    return list(load_updates(plan, rows, collate, first_update=first, micro_batch_size=micro, rank=rank, world=world))


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(1, 12), st.sampled_from(["auto", 1, 2, 5]),
    st.integers(1, 3),
)  # fmt: skip
def test_totals_count_all_processes_and_batches_hold_each_row_once(
    lengths: list[int], batch_size: int, micro: int | str, world: int
) -> None:
    rows = toy_rows(lengths)
    plan = BatchPlan(len(rows), rows.lengths, batch_size, 1.0, 0)
    by_rank = [updates_of(plan, rows, micro, rank, world) for rank in range(world)]
    for number, keys in enumerate(plan.updates()):
        index = [key.index for key in keys]
        labels: list[int] = []
        tokens = 0
        for own in by_rank:
            update = own[number]
            assert (update.rows, update.tokens) == (len(keys), sum(lengths[row] for row in index))
            for part in update.micro_batches:
                if not part.is_empty:
                    assert part.batch["labels"].tolist() == list(part.rows)
                    labels += part.rows
                    tokens += int(part.batch["attention_mask"].sum())
        assert sorted(labels) == sorted(index)
        assert tokens == by_rank[0][number].tokens


def test_an_empty_shard_borrows_a_row_and_says_so() -> None:
    rows = toy_rows([3])
    plan = BatchPlan(1, rows.lengths, 4, 1.0, 0)
    found = [updates_of(plan, rows, "auto", rank, 3)[0].micro_batches for rank in range(3)]
    assert sorted(part.is_empty for (part,) in found) == [False, True, True]
    for (part,) in found:
        assert part.batch["input_ids"].tolist() == [[1, 1, 1]]
        assert part.rows == (() if part.is_empty else (0,))
    assert sorted(part.number for (part,) in found) == [0, 1, 2]


def test_going_on_from_an_update_loads_the_same_batches() -> None:
    rows = toy_rows([2, 5, 1, 4, 3, 3, 2])
    plan = BatchPlan(len(rows), rows.lengths, 2, 2.0, 1)
    whole, rest = updates_of(plan, rows, 1), updates_of(plan, rows, 1, first=3)
    assert len(rest) == len(whole) - 3 == plan.total_updates - 3
    for one, other in zip(whole[3:], rest, strict=True):
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            assert a.rows == b.rows
            assert torch.equal(a.batch["input_ids"], b.batch["input_ids"])


def test_rows_without_lengths_count_one_token_each() -> None:
    class Pictures:
        lengths = None

        def __len__(self) -> int:
            return 5

        def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
            return [{"labels": np.int64(key.index)} for key in keys]

    def stack(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"labels": torch.tensor([int(row["labels"]) for row in rows])}

    plan = BatchPlan(5, None, 2, 1.0, 0)
    loader = load_updates(plan, Pictures(), stack, first_update=0, micro_batch_size="auto", rank=0, world=1)
    assert sorted((update.rows, update.tokens) for update in loader) == [(1, 1), (2, 2), (2, 2)]


def test_the_micro_batch_that_auto_takes() -> None:
    assert micro_batch_rows(7, 32, 128, 2, 8) == 7
    assert micro_batch_rows("auto", 32, 128, 1, 512) == 32
    assert micro_batch_rows("auto", 32, 128, 1, 8) == 8
    assert micro_batch_rows("auto", 33, 128, 2, 512) == 17
    assert micro_batch_rows("auto", 512, 128, 1, 512) == AUTO_TOKENS // 128
    assert micro_batch_rows("auto", 4, 10 * AUTO_TOKENS, 1, 512) == 1


def test_padding_by_hand() -> None:
    batch = collate([{"input_ids": np.array([5, 6]), "labels": 1}, {"input_ids": np.array([7]), "labels": 0}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_padding_takes_the_models_own_pad_token_but_zero_for_token_types() -> None:
    rows = [{"input_ids": np.array([5, 6]), "token_type_ids": np.array([1, 1])},
            {"input_ids": np.array([7]), "token_type_ids": np.array([1])}]  # fmt: skip
    batch = pad_tokens(rows, 9)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert batch["token_type_ids"].tolist() == [[1, 1], [1, 0]]


def test_an_update_comes_again_in_halves() -> None:
    rows = toy_rows([3] * 40)
    plan = BatchPlan(40, None, 8, 1.0, 0)
    for rank in range(2):
        smaller = updates_of(plan, rows, 2, rank, world=2)
        updates = load_updates(plan, rows, collate, first_update=0, micro_batch_size=64, rank=rank, world=2)
        seen = []
        for update in updates:
            seen.append(update)
            if len(seen) == 3:
                updates.halve()
        assert [update.micro_rows for update in seen] == [4, 4, 4, 2, 2, 2]
        for again, begun_so in zip(seen[3:], smaller[2:], strict=True):
            assert [micro.rows for micro in again.micro_batches] == [micro.rows for micro in begun_so.micro_batches]
            assert [micro.number for micro in again.micro_batches] == [micro.number for micro in begun_so.micro_batches]

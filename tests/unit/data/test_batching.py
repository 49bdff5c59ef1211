"""Which rows make an update: every row once an epoch, and the same rows whatever the processes and the micro-batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.batching import POOL_UPDATES, BatchPlan, RowKey, evaluation_batches, fixed_shards, shards_of_rank

pytestmark = pytest.mark.unit


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    rows = draw(st.integers(1, 300))
    lengths = draw(st.none() | st.lists(st.integers(1, 9), min_size=rows, max_size=rows).map(np.array))
    return BatchPlan(
        rows,
        lengths,
        batch_size=draw(st.integers(1, 70)),
        epochs=draw(st.floats(0.05, 3.5)),
        seed=draw(st.integers(0, 5)),
        max_updates=draw(st.none() | st.integers(1, 40)),
    )


def indices(updates: list[list[RowKey]]) -> list[int]:
    return [key.index for keys in updates for key in keys]


@given(plans())
def test_an_epoch_takes_every_row_once_in_whole_updates_and_at_most_one_short_one_a_pool(plan: BatchPlan) -> None:
    order = plan.epoch_order(0)
    assert len(order) == plan.updates_per_epoch == math.ceil(plan.rows / plan.batch_size)
    assert sorted(np.concatenate(order).tolist()) == list(range(plan.rows))
    sizes = sorted(len(update) for update in order)
    assert sizes[1:] == [plan.batch_size] * (len(sizes) - 1)
    assert sizes[0] == plan.rows - plan.batch_size * (len(sizes) - 1)


@given(plans())
def test_the_plan_has_as_many_updates_as_it_says_and_ends_inside_an_epoch(plan: BatchPlan) -> None:
    updates = list(plan.updates())
    planned = max(1, math.ceil(math.ceil(plan.rows / plan.batch_size) * plan.epochs - 1e-9))
    assert len(updates) == plan.total_updates == min(planned, plan.max_updates or planned)
    for number, keys in enumerate(updates):
        assert {key.epoch for key in keys} == {number // plan.updates_per_epoch}


@given(plans(), st.integers(0, 200))
def test_going_on_from_any_update_gives_the_same_rest(plan: BatchPlan, first: int) -> None:
    assert list(plan.updates(first)) == list(plan.updates())[first:]


@given(plans())
def test_a_longer_plan_begins_with_the_shorter_one(plan: BatchPlan) -> None:
    """The order is no function of how long the plan is, so max_updates cuts and never reshuffles."""
    longer = BatchPlan(plan.rows, plan.lengths, plan.batch_size, plan.epochs + 1, plan.seed)
    whole = list(plan.updates())
    assert list(longer.updates())[: len(whole)] == whole


@given(st.integers(1, 80), st.integers(1, 9), st.integers(1, 5))
def test_shards_share_an_update_out_exactly(rows: int, micro: int, world: int) -> None:
    update = [RowKey(0, index) for index in range(rows)]
    shards = [shards_of_rank(update, micro, rank, world) for rank in range(world)]
    # DDP needs as many backward passes on each process.
    assert len({len(own) for own in shards}) == 1
    flat = sorted((shard for own in shards for shard in own), key=lambda shard: shard.number)
    assert [shard.number for shard in flat] == list(range(len(flat)))
    assert [key for shard in flat for key in shard.rows] == update
    sizes = {len(shard.rows) for shard in flat}
    assert max(sizes) <= micro
    assert max(sizes) - min(sizes) <= 1


@given(plans(), st.integers(1, 9), st.integers(1, 4))
def test_processes_and_micro_rows_never_change_which_rows_make_an_update(
    plan: BatchPlan, micro: int, world: int
) -> None:
    for keys in list(plan.updates())[:5]:
        shards = [shard for rank in range(world) for shard in shards_of_rank(keys, micro, rank, world)]
        together = [key for shard in sorted(shards) for key in shard.rows]
        assert together == keys


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4))
def test_the_cut_is_the_same_for_one_process_and_for_many(times: int, micro: int, world: int) -> None:
    """Dropout is keyed by the shard, so with the same micro rows one process must cut as many do."""
    update = [RowKey(0, index) for index in range(times * micro * world)]
    alone = shards_of_rank(update, micro, 0, 1)
    shared = sorted(shard for rank in range(world) for shard in shards_of_rank(update, micro, rank, world))
    assert shared == alone


@given(st.integers(1, 80), st.integers(1, 9), st.integers(1, 5))
def test_fixed_shards_are_the_same_for_any_number_of_processes(rows: int, micro: int, world: int) -> None:
    update = [RowKey(0, index) for index in range(rows)]
    alone = fixed_shards(update, micro, 0, 1)
    assert [key for shard in alone for key in shard.rows] == update
    assert max(len(shard.rows) for shard in alone) <= micro
    ranks = [fixed_shards(update, micro, rank, world) for rank in range(world)]
    assert len({len(own) for own in ranks}) == 1
    # Round by round and rank by rank, as they are added up, they come in the order of their numbers.
    in_order = [shard for together in zip(*ranks, strict=True) for shard in together]
    assert in_order[: len(alone)] == alone
    assert all(not shard.rows for shard in in_order[len(alone) :])


def test_a_short_update_gives_the_last_processes_empty_shards() -> None:
    update = [RowKey(0, 7)]
    sizes = [[len(shard.rows) for shard in shards_of_rank(update, 4, rank, 3)] for rank in range(3)]
    assert sorted(sizes) == [[0], [0], [1]]


def test_fractions_of_an_epoch_by_hand() -> None:
    # 10 rows in updates of 4: 3 an epoch, the last of them short.
    assert [BatchPlan(10, None, 4, epochs, 0).total_updates for epochs in (0.1, 1 / 3, 0.5, 1, 4 / 3, 2)] == [
        1, 1, 2, 3, 4, 6,
    ]  # fmt: skip
    assert BatchPlan(10, None, 4, 9.0, 0, max_updates=5).total_updates == 5
    assert sorted(map(len, BatchPlan(10, None, 4, 1.0, 0).epoch_order(0))) == [2, 4, 4]


def test_epochs_and_seeds_shuffle_differently_and_the_same_seed_the_same() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return np.concatenate(BatchPlan(200, None, 10, 2.0, seed).epoch_order(epoch)).tolist()

    assert first(0, 0) == first(0, 0)
    assert len({tuple(first(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_length_buckets_leave_almost_no_padding_and_keep_updates_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 4000)

    def computed(plan: BatchPlan) -> int:
        return sum(len(index) * int(lengths[index].max()) for index in plan.epoch_order(0))

    bucketed, plain = BatchPlan(4000, lengths, 20, 1.0, 0), BatchPlan(4000, None, 20, 1.0, 0)
    assert computed(bucketed) < 1.03 * lengths.sum() < 1.5 * lengths.sum() < computed(plain)
    means = [float(lengths[index].mean()) for index in bucketed.epoch_order(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2
    # Pools, not the whole epoch: the longest update of the epoch is not made of its longest rows only.
    assert len(means) == 4 * POOL_UPDATES
    assert min(lengths[index].min() for index in bucketed.epoch_order(0) if lengths[index].max() == 99) < 99


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=80).map(np.array), st.booleans(), st.integers(1, 9),
    st.integers(1, 100),
)  # fmt: skip
def test_evaluation_takes_every_row_once_longest_first_within_bounds(
    lengths: np.ndarray, known: bool, max_rows: int, max_tokens: int
) -> None:
    batches = evaluation_batches(lengths if known else None, len(lengths), max_rows, max_tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= max_rows
    if known:
        order = lengths[np.concatenate(batches)]
        assert (np.diff(order) <= 0).all()
        assert all(len(index) == 1 or len(index) * lengths[index].max() <= max_tokens for index in batches)


def test_an_evaluation_batch_ends_where_rows_become_much_shorter() -> None:
    """64 long and 64 short rows are two batches; a few long ones are not worth one of their own."""
    halves = evaluation_batches(np.repeat([10, 100], 64), 128, 128, 100_000)
    assert [len(index) for index in halves] == [64, 64]
    few_long = evaluation_batches(np.repeat([10, 100], [120, 8]), 128, 128, 100_000)
    assert [len(index) for index in few_long] == [32, 96]
    near = evaluation_batches(np.repeat([80, 100], 64), 128, 128, 100_000)
    assert [len(index) for index in near] == [128]


def test_an_update_mixes_lengths_but_its_groups_do_not() -> None:
    """Length goes with class in real data: updates of one length would be updates of one class."""
    lengths = np.random.default_rng(0).integers(60, 250, 3200)
    plan = BatchPlan(3200, lengths, 32, 1.0, 0)
    assert plan.group_rows == 4
    within, across = [], []
    for index in plan.epoch_order(0):
        groups = lengths[index].reshape(-1, plan.group_rows)
        within.append(np.ptp(groups, axis=1).mean())
        across.append(np.ptp(groups.mean(axis=1)))
    assert np.mean(within) < 2
    assert np.mean(across) > 120


def test_short_rows_stay_together_as_a_whole_update() -> None:
    assert BatchPlan(1000, np.full(1000, 20), 32, 1.0, 0).group_rows == 32
    assert BatchPlan(1000, np.full(1000, 512), 32, 1.0, 0).group_rows == 2
    assert BatchPlan(1000, np.full(1000, 5000), 32, 1.0, 0).group_rows == 1
    assert BatchPlan(1000, None, 32, 1.0, 0).group_rows == 32

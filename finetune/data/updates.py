"""One item an update: this process's micro-shards, collated, loaded ahead by worker processes when asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.data.batching import BatchPlan, RowKey, Shard, fixed_shards, shards_of_rank

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.task import Batch, Rows

# What `micro_batch_size=auto` puts on one process at most, in padded tokens: beyond it activations leave the caches.
AUTO_TOKENS = 8192
# Shards of an update that are fixed whatever the number of processes, unless rows are long: so many can share them.
FIXED_SHARDS = 4


@dataclass(frozen=True)
class MicroBatch:
    """A collated micro-shard.

    Attributes:
        number: of the shard, over all processes; dropout is keyed by it.
        batch: tensors of the shard's rows, or of one borrowed row when the shard is empty.
        is_empty: the shard has no row of its own: its loss counts nothing.
        rows: indices of the training rows, for error messages.
    """

    number: int
    batch: Batch
    is_empty: bool
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Update:
    """What one process needs for one update, with the totals over all processes.

    Attributes:
        micro_rows: rows that a process holds at once, at most.
    """

    micro_batches: list[MicroBatch]
    rows: int
    tokens: int
    micro_rows: int


def micro_batch_rows(setting: int | str, update_rows: int, longest: int, world: int, group_rows: int) -> int:
    """Rows that one process holds at once; `auto` takes a group of like length, within its share and AUTO_TOKENS."""
    if isinstance(setting, int):
        return setting
    return max(1, min(math.ceil(update_rows / world), group_rows, AUTO_TOKENS // max(1, longest)))


class _Updates(Dataset[Update]):
    """Indexed by an update's rows, so that loader workers can do the collating."""

    def __init__(
        self,
        plan: BatchPlan,
        rows: Rows,
        collate: Callable[[list[dict[str, Any]]], Batch],
        micro: int | str,
        rank: int,
        world: int,
        fixed: bool,
    ):
        self.fixed = fixed
        self.rows, self.collate, self.micro, self.rank, self.world = rows, collate, micro, rank, world
        self.group_rows = plan.group_rows
        self.halvings = 0

    def __getitem__(self, keys: list[RowKey]) -> Update:
        lengths = self.rows.lengths
        row_lengths = [1] * len(keys) if lengths is None else [int(lengths[key.index]) for key in keys]
        sharers = FIXED_SHARDS if self.fixed else self.world
        micro = micro_batch_rows(self.micro, len(keys), max(row_lengths), sharers, self.group_rows)
        held = min(micro, math.ceil(len(keys) / (1 if self.fixed else self.world)))
        if self.halvings:  # of what was really held, which may be less than what was allowed
            held = micro = max(1, math.ceil(held / 2**self.halvings))
        shards = (fixed_shards if self.fixed else shards_of_rank)(keys, micro, self.rank, self.world)
        return Update([self._collated(shard, keys[0]) for shard in shards], len(keys), sum(row_lengths), held)

    def _collated(self, shard: Shard, borrowed: RowKey) -> MicroBatch:
        batch = self.collate(self.rows.__getitems__(shard.rows or [borrowed]))
        return MicroBatch(shard.number, batch, not shard.rows, tuple(key.index for key in shard.rows))


class _PlanSampler(Sampler[list[RowKey]]):
    def __init__(self, plan: BatchPlan, first_update: int):
        self.plan, self.first_update = plan, first_update

    def __iter__(self) -> Iterator[list[RowKey]]:
        return self.plan.updates(self.first_update)

    def __len__(self) -> int:
        return self.plan.total_updates - self.first_update


@dataclass
class Updates:
    """One rank's updates. One that a process had no memory for comes again after `halve`, in smaller micro-batches."""

    dataset: _Updates
    plan: BatchPlan
    first_update: int
    workers: int
    pin_memory: bool

    def __iter__(self) -> Iterator[Update]:
        number = self.first_update
        while number < self.plan.total_updates:
            halvings = self.dataset.halvings
            # Anew after a halving: worker processes have collated ahead by then.
            for update in DataLoader(
                self.dataset,
                batch_size=None,
                sampler=_PlanSampler(self.plan, number),
                num_workers=self.workers,
                pin_memory=self.pin_memory,
            ):
                yield update
                if self.dataset.halvings != halvings:
                    break
                number += 1

    def halve(self) -> None:
        """The last update once more, and all that follow, in micro-batches half as long."""
        self.dataset.halvings += 1


def load_updates(
    plan: BatchPlan,
    rows: Rows,
    collate: Callable[[list[dict[str, Any]]], Batch],
    *,
    first_update: int,
    micro_batch_size: int | str,
    rank: int,
    world: int,
    fixed: bool = False,
    workers: int = 0,
    pin_memory: bool = False,
) -> Updates:
    """The updates from `first_update` (0-based) to the end of the plan, as this rank sees them.

    With `fixed`, micro-shards are the same for any number of processes, and a process may have an empty one.
    """
    dataset = _Updates(plan, rows, collate, micro_batch_size, rank, world, fixed)
    return Updates(dataset, plan, first_update, workers, pin_memory)

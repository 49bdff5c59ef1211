"""Which rows make an update, decided globally, and how an update's rows are shared out among processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from finetune.randomness import numpy_generator

# Rows are sorted by length inside pools of this many updates: long enough that padding nearly vanishes, short
# enough that an update's rows are still a random draw of the epoch.
POOL_UPDATES = 50
# What is sorted by length together is a group of about this many tokens; an update is made of random groups. Where
# length goes with class, an update of one length mixes classes less (reuters_r8: entropy 1.07 against 1.22 for random
# rows). One run was better for it after an epoch (0.869 against 0.834); neither the cause nor this size is tested.
GROUP_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class RowKey:
    """One training row as it is asked for: augmentation is a function of (seed, epoch, index)."""

    epoch: int
    index: int


class Shard(NamedTuple):
    """The rows of one micro-batch. `number` counts the micro-shards of an update over all processes."""

    number: int
    rows: list[RowKey]


@dataclass(frozen=True)
class BatchPlan:
    """The global order of training rows: a pure function of (seed, rows, lengths, batch size).

    An epoch's last update may be short; no row is dropped or repeated within an epoch.

    Args:
        rows: training rows, over all processes.
        lengths: tokens of each row, [rows], or None when all rows cost the same.
        batch_size: rows of an update, over all processes.
        epochs: passes over the rows; a fraction ends inside an epoch.
        max_updates: ends the plan earlier.
    """

    rows: int
    lengths: np.ndarray | None
    batch_size: int
    epochs: float
    seed: int
    max_updates: int | None = None

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    @property
    def total_updates(self) -> int:
        planned = max(1, math.ceil(self.updates_per_epoch * self.epochs - 1e-9))
        return planned if self.max_updates is None else min(planned, self.max_updates)

    @property
    def group_rows(self) -> int:
        """Rows of like length that stay together: a divisor of the batch size, all of it where rows are short."""
        if self.lengths is None:
            return self.batch_size
        fitting = max(1, GROUP_TOKENS // max(1, int(np.median(self.lengths))))
        return max(rows for rows in range(1, self.batch_size + 1) if self.batch_size % rows == 0 and rows <= fitting)

    def epoch_order(self, epoch: int) -> list[np.ndarray]:
        """Row indices of every update of an epoch; rows of like length stand next to each other."""
        generator = numpy_generator(self.seed, "order", epoch)
        order = generator.permutation(self.rows)
        if self.lengths is None:
            return [order[start : start + self.batch_size] for start in range(0, self.rows, self.batch_size)]
        pool_rows, group_rows = POOL_UPDATES * self.batch_size, self.group_rows
        groups = []
        for start in range(0, self.rows, pool_rows):
            pool = order[start : start + pool_rows]
            # A stable sort keeps rows of equal length in their shuffled order.
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            groups += [pool[first : first + group_rows] for first in range(0, len(pool), group_rows)]
        groups = [groups[number] for number in generator.permutation(len(groups))]
        together = self.batch_size // group_rows
        return [np.concatenate(groups[first : first + together]) for first in range(0, len(groups), together)]

    def updates(self, first_update: int = 0) -> Iterator[list[RowKey]]:
        """The rows of each update from `first_update` on (0-based) to the end of the plan."""
        update = first_update
        while update < self.total_updates:
            epoch, skip = divmod(update, self.updates_per_epoch)
            for indices in self.epoch_order(epoch)[skip : skip + self.total_updates - update]:
                yield [RowKey(epoch, int(index)) for index in indices]
                update += 1


def shards_of_rank(update_rows: list[RowKey], micro_rows: int, rank: int, world: int) -> list[Shard]:
    """This rank's micro-shards of an update.

    The update is cut into the smallest multiple of `world` shards that keeps each at most `micro_rows` long, of
    sizes that differ by one at most. So every rank makes the same number of backward passes (DDP needs that), and
    the cut is the same for 1 process and for many whenever `micro_rows` is the same. A shard may be empty when an
    update has fewer rows than there are processes.
    """
    count = math.ceil(len(update_rows) / (micro_rows * world)) * world
    edges = [round(number * len(update_rows) / count) for number in range(count + 1)]
    return [Shard(number, update_rows[edges[number] : edges[number + 1]]) for number in range(rank, count, world)]


def fixed_shards(update_rows: list[RowKey], micro_rows: int, rank: int, world: int) -> list[Shard]:
    """This rank's micro-shards of an update whose cut does not depend on the number of processes.

    Shards go round the ranks in turn; ranks that have no shard in the last round get an empty one, so that all make
    the same number of rounds.
    """
    count = math.ceil(len(update_rows) / micro_rows)
    edges = [round(number * len(update_rows) / count) for number in range(count + 1)]
    shards = [Shard(number, update_rows[edges[number] : edges[number + 1]]) for number in range(count)]
    shards += [Shard(number, []) for number in range(count, math.ceil(count / world) * world)]
    return shards[rank::world]


# An evaluation batch of at least so many rows ends before a row of less than this share of its longest.
FEWEST_ROWS, SHORTER = 32, 0.8


def evaluation_batches(lengths: np.ndarray | None, rows: int, max_rows: int, max_tokens: int) -> list[np.ndarray]:
    """All rows once, longest first (an out-of-memory error then comes at once), in batches bounded by padded tokens.

    A batch of some size also ends where rows become much shorter than its first: padding them costs more than one more
    batch does (a tenth of the time of 832 rows of 7 to 66 tokens).
    """
    if lengths is None:
        return [np.arange(start, min(start + max_rows, rows)) for start in range(0, rows, max_rows)]
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < rows:
        size = max(1, min(max_rows, max_tokens // max(1, int(lengths[order[start]]))))
        much_shorter = np.flatnonzero(lengths[order[start : start + size]] < SHORTER * lengths[order[start]])
        if len(much_shorter):
            size = max(int(much_shorter[0]), min(size, FEWEST_ROWS))
        batches.append(order[start : start + size])
        start += size
    return batches

"""Which split each row of a plan goes to, and what is wrong or poor about the splits that come out."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data.labels import Classes
from finetune.data.plan import DataPlan
from finetune.data.problems import Problems
from finetune.data.splits import (
    DROPPED,
    SPLITS,
    TEST,
    TRAIN,
    VALID,
    assign,
    assign_in_order,
    first_in_hash_order,
)
from finetune.errors import DataError

SMALL_SPLIT = 50  # fewer rows than this make an interval too wide to say much


@dataclass(frozen=True)
class Dealing:
    """Rows of a plan, to be dealt out to splits.

    Attributes:
        hashes: split hash of each row, [rows].
        published: split that each row was published in, [rows].
        where: the data, for messages.
        place: row to file and line, for messages.
    """

    plan: DataPlan
    hashes: array
    published: array
    where: str
    place: Callable[[int], str]
    problems: Problems

    def assign(self, indices: NDArray[np.int64], classes: Classes) -> tuple[NDArray[np.int8], list[str]]:
        """The split of each row, and notes on what was dealt how.

        Args:
            indices: class of each row, [rows].
        """
        notes: list[str] = []
        hashes = np.array(self.hashes, dtype=np.uint64)
        published = np.array(self.published, dtype=np.int8)
        shares = {"valid_share": self.plan.valid_share, "test_share": self.plan.test_share}
        in_order = self.plan.in_order
        splits = assign_in_order(published, **shares) if in_order else assign(hashes, indices, published, **shares)
        if in_order:
            what = "rows are passages of one text" if self.plan.passages else "rows follow each other in the source"
            notes.append(f"{what}, so splits are whole stretches of it: train comes first")
        in_train = np.flatnonzero(splits == TRAIN)
        most = self.plan.max_train_rows
        if most is not None and most < len(in_train):
            splits[in_train] = DROPPED
            kept = np.arange(most) if self.plan.passages else first_in_hash_order(hashes[in_train], most)
            splits[in_train[kept]] = TRAIN
            left = len(np.unique(indices[splits == TRAIN]))
            notes.append(f"data.max_train_rows keeps {most} of {len(in_train)} training rows")
            if left < len(classes.names):
                notes.append(f"those {most} rows hold {left} of {len(classes.names)} classes")
        # A split by hash can't leak, and this search takes more memory than all the rest.
        made = in_order and not self.plan.passages  # in order, though rows may be alike
        pairs = ((VALID, (TRAIN,)), (TEST, (TRAIN, VALID))) if made or (published != TRAIN).any() else ()
        for later, earlier in pairs:
            leaked = np.isin(hashes[splits == later], hashes[np.isin(splits, earlier)]).sum()
            if leaked:
                notes.append(
                    f"{leaked} rows of the {'' if made else 'published '}{SPLITS[later]} split have the text of a row "
                    f"in {' or '.join(SPLITS[index] for index in earlier)}; they stay{'' if made else ', as published'}"
                )
        return splits, notes

    def check(self, splits: NDArray[np.int8], indices: NDArray[np.int64], classes: Classes) -> list[str]:
        """Note the problems of splits that can't be trained or judged on; returns notes on what is merely poor."""
        notes: list[str] = []
        published = np.array(self.published, dtype=np.int8)
        for index, name in enumerate(SPLITS):
            count = int((splits == index).sum())
            if count == 0:
                self.problems.add(
                    "splits without a row",
                    f"{self.where}: {len(splits)} rows are too few to split; {name} gets none.",
                    "Add rows (some hundreds at least), or give train, valid and test files in a folder.",
                )
            elif count < SMALL_SPLIT and index != TRAIN:
                notes.append(f"{name} has only {count} rows, so its intervals will be wide")
        in_train = np.unique(indices[splits == TRAIN])
        if len(classes.names) > 1 and len(in_train) == 1:
            self.problems.add(
                "one class only",
                f"{self.where}: all training rows have the label {classes.names[in_train[0]]!r}.",
                "Add rows of other classes, or raise data.max_train_rows.",
            )
        if self.plan.max_train_rows is not None:
            return notes  # a learning curve's short end leaves classes out on purpose, and the notes say so
        for label in np.setdiff1d(indices[splits != DROPPED], in_train):
            rows = np.flatnonzero((indices == label) & (splits != DROPPED))
            self.problems.add_error(
                "labels that train never has", self._unseen(classes.names[label], rows, splits, published)
            )
        return notes

    def _unseen(
        self, label: str, rows: NDArray[np.int64], splits: NDArray[np.int8], published: NDArray[np.int8]
    ) -> DataError:
        row = int(rows[0])
        split = SPLITS[splits[row]]
        if published[row] != TRAIN:
            return DataError(
                f"{self.place(row)}: the label {label!r} is in {split}, but in no training row.",
                "Add training rows of it, mend the label, or take the row out.",
            )
        return DataError(
            f"{self.where}: the class {label!r} has {len(rows)} {'row' if len(rows) == 1 else 'rows'} (first: "
            f"{self.place(row)}), and the split hash puts none of them in train.",
            f"Add rows of it (10 or more are sensible), join it with another class or leave it out; "
            f"or split by another salt: --set data.split_salt={self.plan.salt}-2",
        )

"""Measures a data set: rows, labels, duplicates, conflicts, leaks and lengths, also where it can't be trained on."""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from finetune.config import DataSettings
from finetune.data.card import Duplicates
from finetune.data.columns import ID, LABEL
from finetune.data.plan import make_plan
from finetune.data.problems import Problems
from finetune.data.splits import SPLITS, split_hash
from finetune.data.staging import stage

PERCENTILES = (50, 90, 95, 99)
BATCH_ROWS = 1_000

Lengths = Callable[[Sequence[Sequence[str]]], Sequence[int]]
"""Texts by column ([columns][rows]) -> length of each row."""


@dataclass(frozen=True)
class Measured:
    """The numbers that a card states."""

    rows: dict[str, int]
    """Split -> rows."""
    label_counts: dict[str, dict[str, int]]
    """Label -> split -> rows."""
    duplicates: Duplicates
    leaks: dict[str, int]
    """Split -> rows whose normalised text also stands in a split before it (train, valid, test)."""


@dataclass(frozen=True)
class LengthReport:
    """How long rows are, and what a limit cuts off."""

    unit: str
    percentiles: dict[str, int]
    """p50 to p99, and max, over all rows."""
    limit: int | None
    truncated: float | None
    """Share of all rows that are longer than the limit."""
    truncated_by_label: dict[str, float]


@dataclass(frozen=True)
class CheckReport:
    """All that `finetune data check` prints."""

    name: str
    files: tuple[str, ...]
    measured: Measured
    imbalance: float | None
    """Rows of the largest class for one of the smallest."""
    lengths: LengthReport
    dropped: int
    sha256: str
    problems: dict[str, tuple[int, tuple[str, ...]]]
    """Kind -> (how many, first messages with their fix). Empty when the data can be trained on."""
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        values = asdict(self)
        values["measured"]["duplicates"] = self.measured.duplicates.model_dump()
        values["problems"] = {
            kind: {"count": count, "first": list(first)} for kind, (count, first) in self.problems.items()
        }
        return values


def check_data(
    settings: DataSettings,
    roles: Mapping[str, str | None],
    *,
    lengths: Lengths | None = None,
    unit: str = "words",
    max_length: int | None = None,
) -> CheckReport:
    """Read what `settings.source` names as a load would, but count problems instead of stopping at them.

    Args:
        lengths: length of rows in tokens; None counts words.
        unit: what `lengths` counts.
        max_length: limit whose truncation is reported, in the same unit.

    Raises:
        DataError: the files can't be read at all (missing, binary, no such column, ...).
    """
    plan = make_plan(settings, roles)
    with tempfile.TemporaryDirectory(prefix="finetune-check-") as folder:
        problems = Problems(strict=False)
        staged = stage(plan, Path(folder), problems)
        splits = {split: datasets.Dataset.from_file(str(path)) for split, path in staged.files.items()}
        measured = measure(splits, staged.labels)
        counted = _lengths(splits, staged.labels, lengths or _words, unit, max_length)
        del splits  # unmapped before the folder goes
    totals: list[int] = [sum(by_split.values()) for by_split in measured.label_counts.values()]
    return CheckReport(
        plan.name,
        tuple(str(path) for _, path in plan.files),
        measured,
        round(max(totals) / min(totals), 1) if totals and 0 not in totals else None,
        counted,
        staged.dropped,
        staged.sha256,
        {kind: (found.count, tuple(str(error) for error in found.first)) for kind, found in problems.found.items()},
        staged.notes,
    )


def measure(splits: Mapping[str, datasets.Dataset], labels: Sequence[str]) -> Measured:
    """Count rows, labels, duplicates, conflicts and leaks; 24 bytes of memory a row."""
    exact, normal, classes, owner = array("Q"), array("Q"), array("i"), array("b")
    for split, texts, indices in _rows(splits):
        owner.extend([SPLITS.index(split)] * len(indices))
        classes.extend(indices)
        for row in zip(*texts, strict=True):
            exact.append(int.from_bytes(hashlib.sha256(json.dumps(row).encode()).digest()[:8], "big"))
            normal.append(split_hash("", row))
    exact_hashes, hashes = (np.array(values, dtype=np.uint64) for values in (exact, normal))
    label_of, split_of = np.array(classes, dtype=np.int32), np.array(owner, dtype=np.int8)
    return Measured(
        rows={split: len(splits[split]) for split in SPLITS},
        label_counts={
            label: {split: int(((label_of == index) & (split_of == place)).sum()) for place, split in enumerate(SPLITS)}
            for index, label in enumerate(labels)
        },
        duplicates=Duplicates(
            exact=len(exact_hashes) - len(np.unique(exact_hashes)),
            normalised=len(hashes) - len(np.unique(hashes)),
            conflicting=_conflicting(hashes, label_of),
        ),
        leaks={
            split: int(np.isin(hashes[split_of == place], hashes[split_of < place]).sum())
            for place, split in enumerate(SPLITS)
            if place
        },
    )


def token_lengths(tokenizer: Any) -> Lengths:
    """Row lengths by a transformers tokenizer, special tokens included."""

    def lengths(texts: Sequence[Sequence[str]]) -> Sequence[int]:
        encoded = tokenizer(
            *(list(column) for column in texts), truncation=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    return lengths


def _words(texts: Sequence[Sequence[str]]) -> Sequence[int]:
    return [sum(len(text.split()) for text in row) for row in zip(*texts, strict=True)]


def _rows(splits: Mapping[str, datasets.Dataset]) -> Iterator[tuple[str, list[list[str]], list[int]]]:
    """Yield (split, texts by column [columns][rows], class indices [rows]), a batch at a time."""
    for split, rows in splits.items():
        names = [name for name in rows.column_names if name not in (ID, LABEL)]
        for batch in rows.iter(batch_size=BATCH_ROWS):
            size = len(batch[ID])
            yield split, [list(batch[name]) for name in names], list(batch.get(LABEL, [0] * size))


def _conflicting(hashes: NDArray[np.uint64], labels: NDArray[np.int32]) -> int:
    """Rows whose text stands under more than one label."""
    _, group = np.unique(hashes, return_inverse=True)
    if not len(group):
        return 0
    pairs = np.unique(np.stack([group, labels.astype(np.int64)]), axis=1)
    return int((np.bincount(pairs[0])[group] > 1).sum())


def _lengths(
    splits: Mapping[str, datasets.Dataset], labels: Sequence[str], lengths: Lengths, unit: str, limit: int | None
) -> LengthReport:
    counted, classes = array("q"), array("i")
    for _, texts, indices in _rows(splits):
        counted.extend(lengths(texts))
        classes.extend(indices)
    values, label_of = np.array(counted, dtype=np.int64), np.array(classes, dtype=np.int32)
    percentiles: dict[str, int] = {}
    if len(values):
        found = np.percentile(values, PERCENTILES, method="higher")
        percentiles = {f"p{p}": int(value) for p, value in zip(PERCENTILES, found, strict=True)}
        percentiles["max"] = int(values.max())
    if limit is None or not len(values):
        return LengthReport(unit, percentiles, limit, None, {})
    over = values > limit
    by_label = {
        label: round(float(over[label_of == index].mean()), 4)
        for index, label in enumerate(labels)
        if (label_of == index).any()
    }
    return LengthReport(unit, percentiles, limit, round(float(over.mean()), 4), by_label)

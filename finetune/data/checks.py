"""Measures a data set: rows, labels, duplicates, conflicts, leaks and lengths, also where it can't be trained on."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from finetune.errors import DataError

PERCENTILES = (50, 90, 95, 99)
BATCH_ROWS = 1_000
TAGS = "tags"

Lengths = Callable[[Sequence[Sequence[Any]]], Sequence[int]]
"""Texts (or lists of words) by column ([columns][rows]) -> length of each row."""
Examine = Callable[[Mapping[str, datasets.Dataset]], tuple[list[str], list[DataError]]]
"""Rows by split -> notes, and what a run would refuse, that only this kind of rows has."""


@dataclass(frozen=True)
class Measured:
    """The numbers that a card states."""

    rows: dict[str, int]
    """Split -> rows."""
    label_counts: dict[str, dict[str, int]]
    """Label -> split -> rows; of words with tags, type -> split -> entities."""
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
    kind: str
    """texts, pairs of texts, words with tags or conversations."""
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
    kind: str = "texts",
    scores: bool = False,
    examine: Examine | None = None,
) -> CheckReport:
    """Read what `settings.source` names as a load would, but count problems instead of stopping at them.

    Args:
        lengths: length of rows in tokens; None counts words.
        unit: what `lengths` counts.
        max_length: limit whose truncation is reported, in the same unit.
        kind: what rows are, for the report.
        scores: labels are numbers to be predicted, not classes.
        examine: what else to look at.

    Raises:
        DataError: the files can't be read at all (missing, binary, no such column, ...).
    """
    plan = replace(make_plan(settings, roles), scores=scores)
    with tempfile.TemporaryDirectory(prefix="finetune-check-") as folder:
        problems = Problems(strict=False)
        staged = stage(plan, Path(folder), problems)
        splits = {split: datasets.Dataset.from_file(str(path)) for split, path in staged.files.items()}
        measured = measure(splits, staged.labels)
        counted = _lengths(splits, staged.labels, lengths or _words, unit, max_length)
        notes, errors = examine(splits) if examine is not None and not problems.found else ([], [])
        for error in errors:
            problems.add_error("answers that are lost", error)
        del splits  # unmapped before the folder goes
    totals: list[int] = [sum(by_split.values()) for by_split in measured.label_counts.values()]
    return CheckReport(
        plan.name,
        kind,
        tuple(str(path) for _, path in plan.files),
        measured,
        round(max(totals) / min(totals), 1) if totals and 0 not in totals else None,
        counted,
        staged.dropped,
        staged.sha256,
        {kind: (found.count, tuple(str(error) for error in found.first)) for kind, found in problems.found.items()},
        (*staged.notes, *notes),
    )


def measure(splits: Mapping[str, datasets.Dataset], labels: Sequence[str]) -> Measured:
    """Count rows, labels, duplicates, conflicts and leaks; 24 bytes of memory a row."""
    exact, normal, classes, owner = array("Q"), array("Q"), array("i"), array("b")
    for split, columns, indices in _rows(splits):
        owner.extend([SPLITS.index(split)] * len(indices))
        classes.extend(indices)
        # Words with tags are the same rows as the readers take for the same: by their words.
        texts = [[value if isinstance(value, str) else " ".join(value) for value in column] for column in columns]
        for row in zip(*texts, strict=True):
            exact.append(int.from_bytes(hashlib.sha256(json.dumps(row).encode()).digest()[:8], "big"))
            normal.append(split_hash("", row))
    exact_hashes, hashes = (np.array(values, dtype=np.uint64) for values in (exact, normal))
    label_of, split_of = np.array(classes, dtype=np.int32), np.array(owner, dtype=np.int8)
    return Measured(
        rows={split: len(splits[split]) for split in SPLITS},
        label_counts=_entities(splits)
        if TAGS in splits[SPLITS[0]].column_names
        else {
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


def _words(columns: Sequence[Sequence[Any]]) -> Sequence[int]:
    return [
        sum(len(text.split() if isinstance(text, str) else text) for text in row) for row in zip(*columns, strict=True)
    ]


def _rows(splits: Mapping[str, datasets.Dataset]) -> Iterator[tuple[str, list[list[Any]], list[int]]]:
    """Yield (split, texts by column [columns][rows], class indices [rows]), a batch at a time.

    Where labels are no classes (tags, scores), equal ones have equal indices.
    """
    numbers: dict[Any, int] = {}
    for split, rows in splits.items():
        names = [name for name in rows.column_names if name not in (ID, LABEL, TAGS)]
        for batch in rows.iter(batch_size=BATCH_ROWS):
            found: list[Any] = (
                [tuple(tags) for tags in batch[TAGS]] if TAGS in batch else batch.get(LABEL, [0] * len(batch[ID]))
            )
            if found and not isinstance(found[0], int):
                found = [numbers.setdefault(some, len(numbers)) for some in found]
            yield split, [list(batch[name]) for name in names], list(found)


def _entities(splits: Mapping[str, datasets.Dataset]) -> dict[str, dict[str, int]]:
    """Type -> split -> entities: each has one tag that begins it, B- (IOBES: or S-)."""
    counts: dict[str, dict[str, int]] = {}
    for split, rows in splits.items():
        for batch in rows.iter(batch_size=BATCH_ROWS):
            for tag in itertools.chain.from_iterable(batch[TAGS]):
                if tag[:2] in ("B-", "S-"):
                    by_split = counts.setdefault(tag[2:], dict.fromkeys(SPLITS, 0))
                    by_split[split] += 1
    return dict(sorted(counts.items()))


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
    rated = next(iter(splits.values())).features.get(LABEL)
    by_label = (
        {}
        if rated is None
        else {
            label: round(float(over[label_of == index].mean()), 4)
            for index, label in enumerate(labels)
            if (label_of == index).any()
        }
    )
    return LengthReport(unit, percentiles, limit, round(float(over.mean()), 4), by_label)

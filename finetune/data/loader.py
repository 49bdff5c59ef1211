"""One loader for every recipe and every kind of file: rows as memory-mapped Arrow, read once, checked, and kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from finetune.config import DataSettings
from finetune.data import (
    arrow_splits,
    columns,
    dealing,
    file_kinds,
    labels,
    readers,
    scores,
    splits,
    staging,
    tables,
    tagged,
    texts,
)
from finetune.data.cache import cache_folder, disk_errors, say, turn
from finetune.data.card import DataCard
from finetune.data.file_kinds import kind_of, refuse_binary
from finetune.data.personal import redactions
from finetune.data.plan import DataPlan, make_plan
from finetune.data.problems import Problems
from finetune.data.splits import SPLITS
from finetune.data.staging import stage
from finetune.files import sha256_file, sync_file, sync_folder, whole_file

# The modules that decide what rows a file gives. Their text is part of every key: a version number that a person has to
# raise was forgotten once, and a table kept by older code then passed for today's.
READING = (arrow_splits, columns, dealing, file_kinds, labels, readers, scores, splits, staging, tables, tagged, texts)
META = "meta.json"


@dataclass(frozen=True)
class LoadedData:
    """Checked rows, ready to be tokenised."""

    name: str
    """Card name, file stem, folder name or hub id."""
    card: DataCard | None
    splits: dict[str, datasets.Dataset]
    """By train, valid and test; columns: id (str), then the roles: text (str), label (int64 class index,
    or float64 score)."""
    labels: tuple[str, ...]
    """Class names (or tags) in class-index order; empty when the task has no label, or numbers for labels."""
    sha256: str
    """Over the roles' values of all rows, split by split, and the labels; not over ids, paths or formats."""
    notes: tuple[str, ...]
    """What a person should be told: rows left out, columns found, leaks kept as published."""
    passages: bool = False
    """Whether rows are passages of one running text, in order; then a row's end is no document's end."""


def load_data(settings: DataSettings, roles: Mapping[str, str | None], *, scores: bool = False) -> LoadedData:
    """Load what `settings.source` names, from the cache when these files were read with these settings before.

    Several processes may call it at once: one reads, the others wait and use its files.

    Args:
        settings: source, shares, salt and limits.
        roles: role -> column name, or None to find it by its usual names: {"text": None, "label": "stars"}.
        scores: labels are numbers to be predicted, not classes.

    Raises:
        DataError: the data or its card is wrong; names file and line.
        SourceError: it can't be fetched, or the cache folder can't be written.
        ConfigError: a setting contradicts the source.
    """
    plan = make_plan(settings, roles)
    plan = replace(plan, scores=scores, notes=plan.notes + redactions(plan.files))
    for _, path in plan.files:
        refuse_binary(path, plan.format.kind or kind_of(path))
    key = _key(plan)
    folder = cache_folder("data") / key
    with turn(f"data-{key}", f"reading {plan.name}"):
        meta = _verified(folder)
        if meta is None:
            meta = _build(plan, folder)
    return LoadedData(
        plan.name,
        plan.card,
        {split: datasets.Dataset.from_file(str(folder / f"{split}.arrow")) for split in SPLITS},
        tuple(meta["labels"]),
        meta["sha256"],
        plan.notes + tuple(meta["notes"]),
        plan.passages,
    )


def _key(plan: DataPlan) -> str:
    """What decides the rows: contents and settings, no path and no name."""
    content = {
        "code": [sha256_file(Path(module.__file__ or "")) for module in READING],
        "files": [[split, plan.format.kind or kind_of(path), sha256_file(path)] for split, path in plan.files],
        "documents": [path.name for _, path in plan.files] if plan.documents else None,  # their names are their ids
        "format": plan.format.model_dump(),
        "columns": plan.columns,
        "rule": plan.label_rule.model_dump() if plan.label_rule else None,
        "labels": plan.labels,
        "rows": [plan.in_order, plan.drop_empty],
        "scores": plan.scores,
        "split": [plan.salt, plan.valid_share, plan.test_share, plan.max_train_rows],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _build(plan: DataPlan, folder: Path) -> dict[str, Any]:
    """Read the files into `folder`, which appears whole or not at all."""
    for left_over in folder.parent.glob(f".{folder.name}-*"):  # of a killed process: the lock is ours now
        shutil.rmtree(left_over)
    temp = folder.parent / f".{folder.name}-{os.getpid()}"
    try:
        with disk_errors(folder.parent):
            temp.mkdir()
            staged = stage(plan, temp, Problems(strict=True))
            meta = {
                "labels": staged.labels,
                "sha256": staged.sha256,
                "notes": staged.notes[len(plan.notes) :],
                "files": {path.name: sha256_file(path) for path in staged.files.values()},
            }
            for path in staged.files.values():
                sync_file(path)
            with whole_file(temp / META) as file:
                file.write(json.dumps(meta, indent=1).encode())
            os.rename(temp, folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return meta


def _verified(folder: Path) -> dict[str, Any] | None:
    """The description of a kept table whose files are as they were written; a damaged one is taken away, aloud."""
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / META).read_bytes())
        whole = all(sha256_file(folder / name) == sha256 for name, sha256 in meta["files"].items())
        if whole and {f"{split}.arrow" for split in SPLITS} == set(meta["files"]):
            return {key: meta[key] for key in ("labels", "sha256", "notes")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    say(f"The table {folder} in the cache is damaged: reading the data again.")
    with disk_errors(folder.parent):
        shutil.rmtree(folder)
    return None

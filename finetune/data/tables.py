"""The files of a plan, opened: which columns all of them share, and which file has no labels to measure with."""

from __future__ import annotations

from pathlib import Path

from finetune.data.columns import LABEL, find_columns
from finetune.data.plain_text import Documents
from finetune.data.plan import DataPlan
from finetune.data.problems import Problems
from finetune.data.readers import MISSING, Table, open_table
from finetune.errors import DataError

Tables = list[tuple[str, Table]]
# Columns that a published test file may have and the training file not.
_NUMBERING = {"index", "id", "idx"}


def open_tables(plan: DataPlan) -> Tables:
    """Split and table of each file; documents of plain text are one table a split."""
    if not plan.documents:
        return [(split, open_table(path, plan.format)) for split, path in plan.files]
    by_split: dict[str, list[Path]] = {}
    for split, path in plan.files:
        by_split.setdefault(split, []).append(path)
    return [(split, Documents(paths, plan.format)) for split, paths in by_split.items()]


def columns_of(plan: DataPlan, tables: Tables) -> tuple[Tables, dict[str, str], list[str]]:
    """The tables that have labels, the column of each role, and notes on what was left out.

    Raises:
        DataError: a column that a file lacks.
    """
    first = tables[0][1]
    header_line = first.unit == "line" and plan.format.names is None
    found = find_columns(plan.columns, first.columns, first.path, header_line)
    notes: list[str] = []
    if LABEL in found:
        tables, notes = _without_withheld(tables, found[LABEL])
    for _, table in tables[1:]:
        for role, column in found.items():
            if column not in table.columns:
                raise DataError(
                    f"{table.path} has no column {column!r} for the {role}, but {first.path.name} has "
                    f"(columns: {', '.join(table.columns[:12])}).",
                    "Give all files the same columns; take a file without labels out of the folder.",
                )
    return tables, found, notes


def _without_withheld(tables: Tables, label: str) -> tuple[Tables, list[str]]:
    """Leave out a test split whose labels its publisher keeps (GLUE's): the validation split is tested on."""
    tests = [table for split, table in tables if split == "test"]
    known = set(tables[0][1].columns)
    if not tests or not all(_withheld(table, label, known) for table in tests):
        return tables, []
    has_valid = any(split == "valid" for split, _ in tables)
    left = [("test" if split == "valid" else split, table) for split, table in tables if split != "test"]
    return left, [
        f"{tests[0].path.name} has no labels in {label!r}, so it is left out: "
        + ("the published validation rows are the test rows, and valid is" if has_valid else "test and valid rows are")
        + " taken out of train"
    ]


def _withheld(table: Table, label: str, known: set[str]) -> bool:
    """Whether a file is without labels: its column is missing, or holds -1 only, as in the hub's copies of GLUE."""
    if label not in table.columns:
        return set(table.columns) - known <= _NUMBERING  # else its labels may stand under another name
    found = False
    for _, (value,) in table.rows([label], Problems(strict=False)):
        if value is MISSING or str(value).strip() not in ("-1", "-1.0"):
            return False
        found = True
    return found

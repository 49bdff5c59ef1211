"""What is left of a table and how long it will take, from the runs that are done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.bench.jobs import Job, jobs_of_cell
from finetune.bench.table import Table


@dataclass(frozen=True)
class CellPlan:
    """A cell's runs, its search included.

    Attributes:
        seconds: wall time of one run: the mean of the cell's own, else of its row's in other columns; None without any.
    """

    row: str
    column: str
    done: int
    planned: int
    seconds: float | None


def estimates(table: Table, records: Mapping[str, dict[str, Any]]) -> tuple[list[CellPlan], int]:
    """Every cell of the table, row by row, and the number of records that are of none of its runs."""
    cells, known = [], set()
    for row in table.content.rows:
        for column in table.content.columns:
            if not table.has(row, column):
                continue
            scored, tries = jobs_of_cell(table, row, column, records)
            jobs: list[Job] = [*scored, *tries]
            keys = {job.key(table) for job in jobs}
            known |= keys
            searched = len(row.search.values) - 1 if row.search else 0  # one of the tries is the first seed's run
            planned = len(table.seeds_of(row, column)) + searched
            own = [records[key]["wall_s"] for key in keys if key in records]
            # A record of other settings still says how long such a run takes.
            others = [one["wall_s"] for one in records.values() if one["row"] == row.name]
            same = own or [one["wall_s"] for one in records.values() if _is(one, row.name, column.name)] or others
            seconds = sum(same) / len(same) if same else None
            cells.append(CellPlan(row.name, column.name, len(own), planned, seconds))
    return cells, len(set(records) - known)


def _is(record: Mapping[str, Any], row: str, column: str) -> bool:
    return bool(record["row"] == row and record["column"] == column)

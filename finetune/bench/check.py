"""`finetune bench check`: are a table's documents what its records give, and do the records hold what they claim?"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from finetune.bench.jobs import changed_data, read_records, stored_of
from finetune.bench.show import cells_of, documents
from finetune.bench.table import Table
from finetune.errors import DataError


def check(table: Table, folder: Path) -> list[str]:
    """What is wrong with the published documents and records; nothing is good.

    The picture is looked for, not at: other versions of the plotting library draw it a little differently.
    """
    records = read_records(table, folder)
    if not records:
        return [f"No run of {table.name} has a record in {folder / table.name}: finetune bench run {table.argument}"]
    wrong = changed_data(table, records)
    for key, record in records.items():
        try:
            score = stored_of(record).value(record["metric"])
        except DataError as error:
            wrong.append(error.problem)
            continue
        if not math.isclose(score, record["score"], rel_tol=1e-12):
            wrong.append(f"{key}.json says {record['metric']} {record['score']}, its answers give {score}")
    cells = cells_of(table, records)
    for path, text in documents(table, folder).items():
        there = path.read_text("utf-8").splitlines() if path.is_file() else None
        if there is None:
            wrong.append(f"{path} is not there: finetune bench show {table.argument}")
            continue
        lines = text.splitlines()
        for number in range(max(len(lines), len(there))):
            one, other = (some[number] if number < len(some) else "(no line)" for some in (there, lines))
            if one != other:
                wrong.append(f"{path}, line {number + 1}: {one[:120]!r}, but the records give {other[:120]!r}")
                break
    if cells and not (picture := folder / f"{table.name}.png").is_file():
        wrong.append(f"{picture} is not there: finetune bench show {table.argument}")
    at = {(cell.row.name, cell.column.name): cell for cell in cells}
    for some in table.content.references:
        cell = at.get((some.row, some.column))
        if some.tolerance is None:
            continue
        published = f"published {some.value:g} ± {some.tolerance:g} ({some.source})"
        if cell is None:
            wrong.append(f"{some.row} on {some.column}: not run, {published}")
        elif abs(float(np.mean(cell.scores)) - some.value) > some.tolerance:
            wrong.append(f"{some.row} on {some.column}: {np.mean(cell.scores):.2f}, {published}")
    return wrong

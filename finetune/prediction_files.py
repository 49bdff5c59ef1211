"""Files that `finetune predict` reads and writes: every column kept as it is, two added, nothing overwritten."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.columns import Texts, find_columns
from finetune.data.file_kinds import Format
from finetune.data.problems import Problems
from finetune.data.readers import MISSING, open_table
from finetune.errors import ConfigError, DataError

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")


def check_out(out: Path) -> None:
    """Refuse a place to write that would lose something, before anything is loaded.

    Raises:
        ConfigError: it exists, its folder doesn't, or its ending says no kind of file.
    """
    if out.exists():
        raise ConfigError(f"--out {out} exists already.", "Name another file; nothing is overwritten.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist.", f"mkdir -p {out.parent}")
    if out.suffix not in KINDS:
        raise ConfigError(f"--out {out} ends in none of {', '.join(KINDS)}.", "The ending says what is written.")


def read_rows(path: Path, column: str | None, trained_on: str | None) -> tuple[dict[str, list[Any]], str]:
    """All columns of a file, and the name of its text column.

    Args:
        column: the text column as --column names it; None takes `trained_on`, else a usual name.

    Raises:
        DataError: the file can't be read, has no such column, or a text is empty (with its line).
    """
    table = open_table(path, Format())
    if column is None and trained_on in table.columns:
        column = trained_on
    try:
        name = find_columns({"text": column}, table.columns, path, False)["text"]
    except DataError as error:
        raise DataError(error.problem, "Name the text column with --column NAME.") from None
    problems = Problems(strict=True)
    texts = Texts(name, problems)
    at = table.columns.index(name)
    rows: list[list[Any]] = []
    for line, values in table.rows(table.columns, problems):
        row = [None if value is MISSING else value for value in values]
        row[at] = texts.read(row[at], path, table.unit, line)
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has a header but no rows.", "There is nothing to predict.")
    return {column: [row[index] for row in rows] for index, column in enumerate(table.columns)}, name


def write_rows(columns: Mapping[str, Sequence[Any]], out: Path) -> None:
    """Write columns as the file's ending says; the file appears whole or not at all."""
    temporary = out.with_name(f".{out.name}")
    try:
        if out.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table(dict(columns)), temporary)
        else:
            with temporary.open("x", encoding="utf-8", newline="") as file:
                rows = zip(*columns.values(), strict=True)
                if out.suffix == ".jsonl":
                    for row in rows:
                        file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
                elif out.suffix == ".tsv":
                    _write_tsv(file, columns, rows)
                else:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(columns)
                    writer.writerows(rows)
        temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"--out {out} can't be written: {error.strerror or error}.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _write_tsv(file: Any, columns: Mapping[str, Sequence[Any]], rows: Any) -> None:
    """Tab-separated without quoting, as this toolkit reads it; so a tab or line break inside a value is refused."""
    for row in [tuple(columns), *rows]:
        fields = ["" if value is None else str(value) for value in row]
        if any(mark in field for field in fields for mark in "\t\r\n"):
            raise DataError("A value holds a tab or a line break, which TSV can't.", "Write --out as .csv or .jsonl.")
        file.write("\t".join(fields) + "\n")

"""Files that `finetune predict` reads and writes: every column kept as it is, two added, nothing overwritten."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from finetune.data.columns import Texts, find_columns
from finetune.data.file_kinds import Format
from finetune.data.problems import Problems
from finetune.data.readers import MISSING, open_table
from finetune.errors import ConfigError, DataError
from finetune.files import whole_file

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")


def check_out(out: Path) -> None:
    """Refuse a place to write that would lose something, before anything is loaded.

    Raises:
        ConfigError: it exists, its folder doesn't, or its ending says no kind of file.
    """
    try:
        exists = out.exists()
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}.", "Name another file.") from None
    if exists:
        raise ConfigError(f"--out {out} exists already.", "Name another file; nothing is overwritten.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist.", f"mkdir -p {out.parent}")
    if out.suffix not in KINDS:
        raise ConfigError(f"--out {out} ends in none of {', '.join(KINDS)}.", "The ending says what is written.")


def read_pairs(
    path: Path, columns: Mapping[str, str | None], trained_on: Mapping[str, str | None]
) -> tuple[dict[str, list[Any]], list[str]]:
    """All columns of a file, and the names of the columns of the roles `text` and `text_pair`.

    Raises:
        DataError: as `read_rows`.
    """
    names = dict(columns)
    if set(columns.values()) == {None}:
        table = open_table(path, Format())
        names = {role: name if name in table.columns else None for role, name in trained_on.items()}
        if None in names.values():
            try:
                names = dict(find_columns({"text": None, "text_pair": None}, table.columns, path, False))
            except DataError as error:
                raise DataError(error.problem, "Name both with --column NAME --column-pair NAME.") from None
    elif None in columns.values():
        raise DataError("One of the two text columns is named.", "Name both with --column NAME --column-pair NAME.")
    found: dict[str, list[Any]] = {}
    for role in ("text", "text_pair"):
        table_columns, name = read_rows(path, names[role], None)
        found = found or table_columns
        found[name] = table_columns[name]  # read and checked as text
    return found, [str(names["text"]), str(names["text_pair"])]


def read_rows(
    path: Path, column: str | None, trained_on: str | None, role: str = "text"
) -> tuple[dict[str, list[Any]], str]:
    """All columns of a file, and the name of its text column (`role` image: of its paths).

    Args:
        column: the text column as --column names it; None takes `trained_on`, else a usual name.

    Raises:
        DataError: the file can't be read, has no such column, or a text is empty (with its line).
    """
    if path.suffix.lower() == ".txt":
        raise DataError(f"{path} is plain text, not a table.", "Give a CSV, TSV, JSONL or Parquet file, or --text.")
    table = open_table(path, Format())
    if column is None and trained_on in table.columns:
        column = trained_on
    try:
        name = find_columns({role: column}, table.columns, path, False)[role]
    except DataError as error:
        raise DataError(error.problem, f"Name the {role} column with --column NAME.") from None
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
    """Write columns as the file's ending says; the file appears whole or not at all.

    Raises:
        ConfigError: the disk is full or read-only.
        DataError: a value that this kind of file can't hold; names what can.
    """
    try:
        with whole_file(out) as file:
            if out.suffix == ".parquet":
                _write_parquet(file, columns)
            else:
                text = io.TextIOWrapper(file, encoding="utf-8", newline="")
                _write_text(text, out.suffix, columns)
                text.flush()
                text.detach()
    except OSError as error:
        raise ConfigError(f"--out {out} can't be written: {error.strerror or error}.") from None
    except UnicodeEncodeError as error:
        raise DataError(
            f"A value holds {error.object[error.start : error.end]!r}, half a character, which no file of text can.",
            "Mend it in the file that was read: JSON's \\ud83d and the like come in pairs.",
        ) from None


def _write_text(file: TextIO, suffix: str, columns: Mapping[str, Sequence[Any]]) -> None:
    rows = zip(*columns.values(), strict=True)
    if suffix == ".jsonl":
        for row in rows:
            # Dates and decimals of a Parquet file have no form of their own in JSON, and NaN is none of its numbers.
            values = {name: None if value != value else value for name, value in zip(columns, row, strict=True)}
            file.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
    elif suffix == ".tsv":
        _write_tsv(file, columns, rows)
    else:
        # A bare carriage return would end the row for other readers, so it is quoted like any line break.
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_parquet(file: BinaryIO, columns: Mapping[str, Sequence[Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pyarrow.array(values)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
            raise DataError(
                f"The column {name!r} mixes kinds of values, which Parquet can't: {str(error).splitlines()[0]}",
                "Write --out as .jsonl.",
            ) from None
    pyarrow.parquet.write_table(pyarrow.table(arrays), file)


def _write_tsv(file: TextIO, columns: Mapping[str, Sequence[Any]], rows: Iterable[Sequence[Any]]) -> None:
    """Tab-separated without quoting, as this toolkit reads it; so a tab or line break inside a value is refused."""
    for row in [tuple(columns), *rows]:
        fields = ["" if value is None else str(value) for value in row]
        if any(mark in field for field in fields for mark in "\t\r\n"):
            raise DataError("A value holds a tab or a line break, which TSV can't.", "Write --out as .csv or .jsonl.")
        file.write("\t".join(fields) + "\n")

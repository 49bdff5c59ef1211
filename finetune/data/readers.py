"""Reads CSV, TSV, JSON Lines and Parquet row by row with exact line numbers, and refuses what only looks like them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.file_kinds import Format, decoded_lines, kind_of, refuse_binary
from finetune.data.plain_text import Passages
from finetune.data.problems import Problems
from finetune.data.tagged import Conll
from finetune.errors import DataError

# The csv module's own limit (131,072 characters) would refuse one long document.
csv.field_size_limit(64 * 1024 * 1024)


class _Missing:
    """Stands for a key that a JSON object doesn't have (None would be its null)."""


MISSING = _Missing()


class Table(Protocol):
    """An opened file: its columns are known, its rows are still on disk."""

    path: Path
    columns: tuple[str, ...]
    unit: str  # what a row's number counts: "line", or "row" where the file has no lines

    def rows(self, wanted: Sequence[str], problems: Problems) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield (1-based line or row number, values of the wanted columns) in file order.

        Raises:
            DataError: the file can't be read on; what concerns single rows goes to `problems`.
        """
        ...

    def class_names(self, column: str) -> list[str] | None:
        """Class names by integer label, where the file itself states them."""
        ...


def open_table(path: Path, file_format: Format) -> Table:
    """Open a data file and read its header.

    Raises:
        DataError: missing, empty, binary, of an unknown kind, or without a usable header.
    """
    kind = file_format.kind or kind_of(path)
    refuse_binary(path, kind)
    if kind == "parquet":
        return ParquetTable(path)
    if kind == "jsonl":
        return JsonLines(path, file_format)
    if kind == "txt":
        return Passages(path, file_format)
    if kind == "conll":
        return Conll(path, file_format)
    return Delimited(path, file_format, kind)


class Delimited:
    """CSV with RFC 4180 quotes; TSV without quotes, as GLUE and most published sets are written."""

    unit = "line"

    def __init__(self, path: Path, file_format: Format, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.encoding = file_format.encoding
        self.skip = file_format.skip_lines
        self.delimiter = file_format.delimiter or ("," if kind == "csv" else "\t")
        self.quoted = file_format.quoting if file_format.quoting is not None else kind == "csv"
        self.has_header = file_format.names is None
        header = file_format.names
        if file_format.last_takes_rest and (header is None or self.quoted):
            raise DataError(
                f"{path}: format.last_takes_rest goes with format.names and without quoting.",
                "Write `format: {names: [label, text], quoting: false, last_takes_rest: true}`.",
            )
        self.splits = len(header) - 1 if file_format.last_takes_rest and header is not None else -1
        if header is None:
            header = next((fields for _, fields in self._records()), None)
            if header is None:
                raise DataError(f"{path} is empty.", "Put a header line and one row a line into it.")
            self._refuse_other_delimiter(header)
        # An index column written by pandas has no name; its position gives it one.
        self.columns = tuple(name.strip() or f"column_{place}" for place, name in enumerate(header, 1))
        self._refuse_duplicates()

    def rows(self, wanted: Sequence[str], problems: Problems) -> Iterator[tuple[int, Sequence[Any]]]:
        places = [self.columns.index(name) for name in wanted]
        records = self._records()
        if self.has_header:
            next(records)
        width = len(self.columns)
        for line, fields in records:
            if len(fields) != width:
                problems.add_error("ragged rows", self._ragged(line, len(fields)))
                continue
            yield line, [fields[place] for place in places]

    def class_names(self, column: str) -> list[str] | None:
        return None

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line where the record begins, its fields); blank lines are passed over."""
        lines = decoded_lines(self.path, self.encoding)
        for _ in range(self.skip):
            next(lines, None)
        if not self.quoted:
            for line, text in enumerate(lines, self.skip + 1):
                text = text.rstrip("\r\n")
                if text.strip():
                    yield line, text.split(self.delimiter, self.splits)
            return
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            line = self.skip + reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._bad_quotes(line, self.skip + reader.line_num, error) from None
            if fields:
                yield line, fields

    def _bad_quotes(self, line: int, at: int, error: csv.Error) -> DataError:
        reason = str(error)
        if "unexpected end" in reason:
            return DataError(
                f"{self.path}, line {line}: a quote that opens in this row is never closed.",
                'Close it; a quote inside a quoted text is written twice: "he said ""no""".',
            )
        if "new-line" in reason:
            return DataError(
                f"{self.path}, line {line}: lines end in a bare carriage return.",
                "Save the file with line feeds (LF or CRLF).",
            )
        return DataError(
            f"{self.path}, line {at}: {reason}.",
            'A quote inside a quoted text is written twice ("he said ""no"""). If quotes mean nothing in this file, '
            "say `format: {quoting: false}` in a card.",
        )

    def _ragged(self, line: int, fields: int) -> DataError:
        name = {",": "comma", "\t": "tab"}.get(self.delimiter, self.delimiter)
        fix = (
            f'A text that holds a {name} must stand in double quotes: "like, this".'
            if self.quoted
            else f"A text can't hold a {name}; if this file puts quotes around such texts, say "
            "`format: {quoting: true}` in a card."
        )
        plural = "field" if fields == 1 else "fields"
        return DataError(f"{self.path}, line {line}: {fields} {plural}, but {len(self.columns)} columns.", fix)

    def _refuse_other_delimiter(self, header: list[str]) -> None:
        if len(header) != 1:
            return
        if "\r" in header[0].strip():
            raise DataError(
                f"{self.path}, line 1: lines end in a bare carriage return.",
                "Save the file with line feeds (LF or CRLF).",
            )
        for other, name in (("\t", "tabs"), (";", "semicolons"), (",", "commas"), ("|", "bars")):
            if other != self.delimiter and header[0].count(other):
                fix = {"\t": "Rename it to .tsv.", ",": "Rename it to .csv."}.get(
                    other, f'Write a card that says `format: {{delimiter: "{other}"}}`, or save it with commas.'
                )
                raise DataError(f"{self.path}, line 1: the header is split by {name}, not as a {self.kind} is.", fix)

    def _refuse_duplicates(self) -> None:
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise DataError(
                f"{self.path}, line {self.skip + 1}: two columns are named {twice[0]!r}.",
                "Rename one; if the first line is a row and no header, put a header line such as text,label on top.",
            )


class JsonLines:
    """One JSON object a line; the first object's keys are the columns."""

    unit = "line"

    def __init__(self, path: Path, file_format: Format) -> None:
        self.path = path
        self.encoding = file_format.encoding
        self.skip = file_format.skip_lines
        first = next((text for _, text in self._lines()), None)
        if first is None:
            raise DataError(f"{path} is empty.", 'Put one JSON object a line into it: {"text": "...", "label": "..."}')
        if first.lstrip().startswith("["):
            raise DataError(
                f"{path}, line 1: a JSON list, not one object a line.",
                "Convert it, for example with: jq -c '.[]' data.json > data.jsonl",
            )
        columns = next((tuple(row) for _, row in self._objects(Problems(strict=False))), None)
        if columns is None:
            raise self._not_json(1, "no line of it is a JSON object")
        self.columns = columns

    def rows(self, wanted: Sequence[str], problems: Problems) -> Iterator[tuple[int, Sequence[Any]]]:
        for line, row in self._objects(problems):
            values = [row.get(name, MISSING) for name in wanted]
            if any(value is MISSING for value in values):
                absent = next(name for name, value in zip(wanted, values, strict=True) if value is MISSING)
                problems.add(
                    "rows without a column",
                    f"{self.path}, line {line}: the object has no key {absent!r} (keys: {', '.join(row)}).",
                    "Give every line the same keys, or delete the line.",
                )
                continue
            yield line, values

    def class_names(self, column: str) -> list[str] | None:
        return None

    def _lines(self) -> Iterator[tuple[int, str]]:
        for line, text in enumerate(decoded_lines(self.path, self.encoding), 1):
            if line > self.skip and text.strip():
                yield line, text

    def _objects(self, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
        for line, text in self._lines():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:  # ValueError: also an integer of 5,000 digits
                problems.add_error("lines that are not JSON", self._not_json(line, str(error)))
                continue
            if not isinstance(row, dict):
                problems.add_error("lines that are not an object", self._not_json(line, f"a JSON {type(row).__name__}"))
                continue
            yield line, row

    def _not_json(self, line: int, reason: str) -> DataError:
        return DataError(
            f"{self.path}, line {line}: not a JSON object ({reason}).",
            'Write one object a line: {"text": "...", "label": "..."}',
        )


class ParquetTable:
    """Parquet, read in batches of rows; only the wanted columns are decoded."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None
        self.columns = tuple(schema.names)
        self._metadata = schema.metadata or {}
        if len(set(self.columns)) < len(self.columns):
            twice = next(name for name in self.columns if self.columns.count(name) > 1)
            raise DataError(f"{path}: two columns are named {twice!r}.", "Rename one and write the file again.")

    def rows(self, wanted: Sequence[str], problems: Problems) -> Iterator[tuple[int, Sequence[Any]]]:
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=2_000, columns=list(wanted)):
                    values = [batch.column(name).to_pylist() for name in wanted]
                    for row in zip(*values, strict=True):
                        number += 1
                        yield number, row
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def class_names(self, column: str) -> list[str] | None:
        """The names of a ClassLabel, which the hub's Parquet files carry in their metadata."""
        try:
            features = json.loads(self._metadata.get(b"huggingface", b"{}"))["info"]["features"]
        except (json.JSONDecodeError, KeyError, TypeError):
            return None
        feature = features.get(column) if isinstance(features, dict) else None
        if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):  # a list of classes
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, dict) else None
        return [str(name) for name in names] if isinstance(names, list) else None

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path} can't be read as Parquet: {' '.join(str(error).split())[:160]}",
            "The file is cut off or damaged: copy or export it again.",
        )

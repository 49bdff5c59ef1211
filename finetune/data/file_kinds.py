"""Which kind of data file a file is: by its name, and by its first bytes when the name is wrong."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from finetune.config import Section
from finetune.data.near import near
from finetune.errors import DataError

Kind = Literal["csv", "tsv", "jsonl", "parquet", "txt", "conll"]

SUFFIXES: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
}

_BINARY = (
    (b"\x1f\x8b", "gzip data", "Unpack it first: gunzip"),
    (b"PK\x03\x04", "a zip archive or an Excel file", "Unpack it, or export the sheet as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file", "Export the sheet as CSV (UTF-8)"),
    (b"BZh", "bzip2 data", "Unpack it first: bunzip2"),
    (b"\xfd7zXZ", "xz data", "Unpack it first: unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "Unpack it first: unzstd"),
    (b"PAR1", "Parquet data", "Rename it to .parquet"),
    (b"ARROW1", "Arrow data", "Save it as Parquet"),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV (UTF-8)"),
    (b"%PDF", "a PDF", "Export its text as CSV or JSON Lines"),
    (b"\x89PNG", "a PNG picture", "Give a CSV, TSV, JSONL or Parquet file"),
    (b"\xff\xd8\xff", "a JPEG picture", "Give a CSV, TSV, JSONL or Parquet file"),
    (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\x80\x02", "a Python pickle (never opened here)", "Export the rows as CSV, JSON Lines or Parquet"),
    (b"\x80\x03", "a Python pickle (never opened here)", "Export the rows as CSV, JSON Lines or Parquet"),
    (b"\x80\x04", "a Python pickle (never opened here)", "Export the rows as CSV, JSON Lines or Parquet"),
    (b"\x80\x05", "a Python pickle (never opened here)", "Export the rows as CSV, JSON Lines or Parquet"),
)


class Format(Section):
    """How a data file is written, where its name doesn't say it."""

    kind: Kind | None = None
    """csv, tsv, jsonl, parquet, txt (plain text) or conll (a word and its tag a line). `none` goes by the file's
    extension."""
    names: list[str] | None = None
    """Column names of a file without a header line."""
    skip_lines: Annotated[int, Field(ge=0)] = 0
    """Lines before the header, or before the first row when `names` is given."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """One character between fields. `none` is a comma for CSV, a tab for TSV."""
    quoting: bool | None = None
    """Whether double quotes wrap fields. `none` is yes for CSV, no for TSV."""
    last_takes_rest: bool = False
    """The last column is all that is left of the line, delimiters included: `4 a stirring film`. Without quoting."""
    encoding: str = "utf-8"
    """Text encoding that keeps ASCII, such as utf-8, cp1252 or gb18030."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            name = codecs.lookup(encoding).name
        except LookupError:
            raise ValueError(f"{encoding} is not an encoding that Python knows (try utf-8 or cp1252)") from None
        name = "utf-8" if name == "utf-8-sig" else name
        try:
            keeps_lines = "a\n".encode(name) == b"a\n"
        except (LookupError, TypeError):  # "rot13", "hex" and the like are codecs, but not of text
            keeps_lines = False
        if not keeps_lines:
            # Lines are found before they are decoded, so that an error can name line and byte.
            raise ValueError(f"{encoding} does not keep ASCII: save the file as UTF-8")
        return name


def kind_of(path: Path) -> Kind:
    """The kind that a file's extension names.

    Raises:
        DataError: an unknown extension, with what to do for the usual ones.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    fixes = {
        ".json": "Write one object a line and name it .jsonl (jq -c '.[]' data.json > data.jsonl).",
        ".gz": f"Unpack it first: gunzip {path.name}",
        ".zip": f"Unpack it first: unzip {path.name}",
        ".xlsx": "Export the sheet as CSV (UTF-8).",
        ".xls": "Export the sheet as CSV (UTF-8).",
    }
    raise DataError(
        f"{path} has the extension {suffix or '(none)'}, which is no known kind of data file.",
        fixes.get(
            suffix,
            "Known are .csv, .tsv, .tab, .jsonl, .ndjson, .parquet, .conll for tagged words, .txt for plain text.",
        ),
    )


def refuse_binary(path: Path, kind: Kind) -> None:
    """Look at a file's first bytes before anything parses it.

    Raises:
        DataError: missing, unreadable, empty, or not what its name says.
    """
    try:
        with path.open("rb") as file:
            head = file.read(65_536)
    except FileNotFoundError:
        raise missing_file(path) from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.", "It must be a file that you may read.") from None
    if not head:
        raise DataError(
            f"{path} is empty.",
            "Put text into it." if kind == "txt" else "Put a header line and one row a line into it.",
        )
    if kind == "parquet":
        if not head.startswith(b"PAR1"):
            raise DataError(
                f"{path} is named as Parquet but doesn't begin as Parquet does.",
                "Rename it to what it is (.csv, .tsv or .jsonl), or copy it again.",
            )
        return
    for magic, what, fix in _BINARY:
        if head.startswith(magic):
            raise DataError(f"{path} is {what}, not {kind.upper()}.", f"{fix}.")
    if b"\0" in head:
        line = head[: head.index(b"\0")].count(b"\n") + 1
        raise _null_byte(path, line)


def missing_file(path: Path) -> DataError:
    """The error for a path that doesn't exist, with the name that was probably meant."""
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"{path} does not exist, and neither does its folder {folder}.", "Check the path.")
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    meant = near(path.name, names)
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return DataError(
        f"{path} does not exist.",
        f"Did you mean {folder / meant}?" if meant else f"The folder {folder.resolve()} holds: {listed or 'nothing'}.",
    )


def decoded_lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield lines with their line ends, so that errors can name line and byte; a UTF-8 mark at the start goes.

    Raises:
        DataError: a byte that is not of this encoding, or a null byte.
    """
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if line == 1 and encoding == "utf-8" and raw.startswith(codecs.BOM_UTF8):
                raw = raw[len(codecs.BOM_UTF8) :]
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {line}, byte {error.start + 1}: 0x{raw[error.start]:02x} is not {encoding}.",
                    "Save the file as UTF-8, or name its encoding in a card, for example `format: {encoding: cp1252}`.",
                ) from None
            if "\0" in text:
                raise _null_byte(path, line)
            yield text


def _null_byte(path: Path, line: int) -> DataError:
    return DataError(
        f"{path}, line {line}: a null byte, so this is a binary file or UTF-16 text.",
        "Export the rows again as CSV in UTF-8.",
    )

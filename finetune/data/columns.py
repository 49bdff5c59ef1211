"""Roles of columns (text, label, ...): which column plays which, and what a value of each role must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune.data.near import near
from finetune.data.problems import Problems
from finetune.errors import DataError

ID, LABEL = "id", "label"


class Texts:
    """Values of one text column: not empty, all of one type, whole numbers written as text."""

    arrow_type = pa.string()

    def __init__(self, column: str, problems: Problems) -> None:
        self.column = column
        self.problems = problems
        self.rows = 0
        self.numeric = 0
        self.wrapped = 0
        self.tabbed = 0
        self._first: tuple[type, str] | None = None

    def read(self, value: Any, path: Path, unit: str, line: int) -> str | None:
        """The value as it is kept, or None when a problem was noted."""
        if type(value) is not str:
            checked = self._not_text(value, f"{path}, {unit} {line}")
            if checked is None:
                return None
            value = checked
        elif self._first is None:
            self._first = (str, f"{path}, {unit} {line}")
        elif self._first[0] is not str:
            return self._mixed(f"{path}, {unit} {line}", str)
        if not value.strip():
            return self._bad(
                "empty texts",
                f"{path}, {unit} {line}: the text in {self.column!r} is empty.",
                "Fill it in, or delete the row.",
            )
        self.rows += 1
        if value.isdecimal():
            self.numeric += 1
        if value[0] == '"' and value[-1] == '"' and '""' in value[1:-1]:
            self.wrapped += 1
        if "\n" in value and "\t" in value:
            self.tabbed += 1
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return self._bad(
                    "texts with half a character",
                    f"{path}, {unit} {line}: the text in {self.column!r} holds half a surrogate pair.",
                    "Write the character whole (\\ud83d\\ude00, not \\ud83d alone).",
                )
        return value

    def notes(self) -> list[str]:
        """What is not wrong but worth a look."""
        notes = []
        if self.rows and self.numeric == self.rows:
            notes.append(f"every text in column {self.column!r} is a number: is it the right column?")
        if self.wrapped:
            notes.append(
                f"{self.wrapped} texts in column {self.column!r} stand in double quotes with doubled quotes inside: "
                "if those are CSV quotes, say `format: {quoting: true}` in a card"
            )
        if self.tabbed:
            notes.append(
                f"{self.tabbed} texts in column {self.column!r} hold line breaks and tabs: a stray quote may have "
                "swallowed the rows below them"
            )
        return notes

    def _not_text(self, value: Any, place: str) -> str | None:
        if value is None or (isinstance(value, float) and value != value):
            return self._bad(
                "empty texts", f"{place}: the text in {self.column!r} is missing.", "Fill it in, or delete the row."
            )
        if not isinstance(value, int) or isinstance(value, bool):
            return self._bad(
                "texts of a wrong kind",
                f"{place}: the text in {self.column!r} is a {type(value).__name__}.",
                "Name the text's column: --set data.text=COLUMN",
            )
        if self._first is None:
            self._first = (int, place)
        elif self._first[0] is not int:
            return self._mixed(place, int)
        return str(value)

    def _mixed(self, place: str, kind: type) -> str | None:
        assert self._first is not None
        words = {str: "a string", int: "a number"}
        return self._bad(
            "texts of mixed types",
            f"{place}: the text in {self.column!r} is {words[kind]}, but {words[self._first[0]]} at {self._first[1]}.",
            "Write all texts as strings.",
        )

    def _bad(self, kind: str, problem: str, fix: str) -> str | None:
        self.problems.add(kind, problem, fix)
        return None


@dataclass(frozen=True)
class Role:
    """What a recipe may ask a column to be."""

    reader: Callable[[str, Problems], Texts]
    usual: tuple[str, ...]


# A later recipe (images, conversations, scores) adds its role here, with a reader of its own.
ROLES: dict[str, Role] = {
    "text": Role(
        Texts,
        (
            "text",
            "sentence",
            "content",
            "review",
            "comment",
            "message",
            "tweet",
            "body",
            "document",
            "question",
            "utterance",
            "sms",
            "headline",
            "title",
        ),
    ),
    "image": Role(
        Texts, ("image", "img", "path", "file", "file_name", "filename", "image_path", "file_path", "picture")
    ),
    "text_b": Role(Texts, ("text_b", "sentence2", "text2", "hypothesis", "response")),
}
USUAL_LABELS = (
    "label",
    "labels",
    "category",
    "class",
    "target",
    "sentiment",
    "topic",
    "intent",
    "emotion",
    "spam",
    "stars",
    "rating",
    "y",
)


def find_columns(
    wanted: Mapping[str, str | None], columns: tuple[str, ...], path: Path, header_line: bool
) -> dict[str, str]:
    """Column by role: the named ones as they are, others by their usual names, and an id column if there is one.

    Args:
        wanted: role to column name, or to None for "find it".
        header_line: whether the names stand in the file's first line (and may be a row by mistake).

    Raises:
        DataError: a column that isn't there (with what is), or none with a usual name.
    """
    listed = ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "")
    found: dict[str, str] = {}
    for role, name in wanted.items():
        if name is not None and name not in columns:
            meant = near(name, columns)
            raise DataError(
                f"{path} has no column {name!r} (columns: {listed}).{_maybe_a_row(columns, header_line)}",
                (f"Did you mean {meant!r}? " if meant else "") + f"--set data.{role}={meant or 'COLUMN'} names it.",
            )
        found[role] = name if name is not None else _usual(role, columns, path, listed, header_line)
    taken: dict[str, str] = {}
    for role, name in found.items():
        if name in taken:
            raise DataError(
                f"{path}: column {name!r} would be both {taken[name]} and {role}.",
                f"Name another: --set data.{role}=COLUMN (columns: {listed}).",
            )
        taken[name] = role
    if ID not in found:
        ids = [name for name in columns if name.casefold() == ID and name not in taken]
        if ids:
            found[ID] = ids[0]
    return found


def _usual(role: str, columns: tuple[str, ...], path: Path, listed: str, header_line: bool) -> str:
    usual = USUAL_LABELS if role == LABEL else ROLES[role].usual
    folded = {name.strip().casefold(): name for name in reversed(columns)}
    for name in usual:
        if name in folded:
            return folded[name]
    raise DataError(
        f"{path}: no column has a usual name for the {role} (columns: {listed}).{_maybe_a_row(columns, header_line)}",
        f"Name it: --set data.{role}=COLUMN",
    )


def _maybe_a_row(columns: tuple[str, ...], header_line: bool) -> str:
    """A hint when the first line looks like data: a number, or more words than a column's name has."""
    if header_line and any(re.fullmatch(r"-?\d+(\.\d+)?", name) or len(name.split()) > 4 for name in columns):
        return " Its first line looks like a row: put a header line such as text,label above it."
    return ""

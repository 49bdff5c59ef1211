"""What a value of a text column or of a column of conversations must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune.data.problems import Problems


class Texts:
    """Values of one text column: not empty, all of one type, whole numbers written as text."""

    arrow_type = pa.string()

    def __init__(self, column: str, problems: Problems) -> None:
        self.column = column
        self.drop_empty = False
        """Leave rows whose text is empty out, as a card may say, instead of refusing them."""
        self.problems = problems
        self.rows = 0
        self.numeric = 0
        self.wrapped = 0
        self.tabbed = 0
        self.left_out = 0
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
            if self.drop_empty:
                self.left_out += 1
                return None
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

    def hashed(self, value: Any) -> str:
        """What says that two rows are the same."""
        return str(value)

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


class Messages(Texts):
    """Values of a column of conversations: lists of {"role", "content"}, kept as JSON of just those keys."""

    def read(self, value: Any, path: Path, unit: str, line: int) -> str | None:
        """The conversation as canonical JSON, or None when a problem was noted."""
        place = f"{path}, {unit} {line}"
        fix = 'Write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
        if not isinstance(value, list) or not value:
            return self._bad("conversations of a wrong kind", f"{place}: {self.column!r} is no list of messages.", fix)
        kept = []
        for number, message in enumerate(value, 1):
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                what = "lacks role or content"
            elif not isinstance(message["role"], str) or not isinstance(message["content"], str):
                what = "has a role or content that is no text"
            elif not message["content"].strip():
                what = f"({message['role']}) is empty"
            # What a template would be given and does not get would be left out silently: tool calls, images, names.
            elif extra := [key for key in message if key not in ("role", "content") and message[key] is not None]:
                what = f"has {extra[0]!r} besides role and content, which is not supported"
            else:
                kept.append({"role": message["role"], "content": message["content"]})
                continue
            return self._bad("messages of a wrong kind", f"{place}: message {number} of {self.column!r} {what}.", fix)
        if all(message["role"] != "assistant" for message in kept):
            return self._bad(
                "conversations without an answer",
                f"{place}: {self.column!r} has no message of the role assistant.",
                "Name the roles system, user and assistant, or leave the row out.",
            )
        return super().read(json.dumps(kept, ensure_ascii=False), path, unit, line)

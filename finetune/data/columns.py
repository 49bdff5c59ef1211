"""Roles of columns (text, label, ...): which column plays which, and what a value of each role must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.data.near import near
from finetune.data.problems import Problems
from finetune.data.tagged import Tags, Tokens
from finetune.data.texts import Messages, Texts
from finetune.errors import DataError

ID, LABEL = "id", "label"


@dataclass(frozen=True)
class Role:
    """What a recipe may ask a column to be."""

    reader: Callable[[str, Problems], Texts | Tokens | Tags]
    usual: tuple[str, ...]


# A later recipe (images, conversations) adds its role here, with a reader of its own.
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
    "prompt": Role(Texts, ("prompt", "question", "statement", "user")),
    "response": Role(Texts, ("response", "completion", "answer", "reply", "output", "assistant")),
    "messages": Role(Messages, ("messages", "conversation", "conversations")),
    "text_pair": Role(Texts, ("text_pair", "text_b", "sentence2", "text2", "hypothesis", "response")),
    "tokens": Role(Tokens, ("tokens", "words")),
    "tags": Role(Tags, ("tags", "ner_tags", "labels", "ner", "label")),
    "image": Role(
        Texts, ("image", "img", "path", "file", "file_name", "filename", "image_path", "file_path", "picture")
    ),
}
# The usual names of the two texts of a pair, which are found together: in QNLI `question` comes before `sentence`.
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "answer"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("#1 string", "#2 string"),
)
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
    "score",
    "quality",
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
    wanted = {**wanted, **_usual_pair(wanted, columns)}
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


def _usual_pair(wanted: Mapping[str, str | None], columns: tuple[str, ...]) -> dict[str, str]:
    """The columns of a pair of texts, where both are to be found and stand under names that go together."""
    if wanted.get("text", "") is None and wanted.get("text_pair", "") is None:
        folded = {name.strip().casefold(): name for name in reversed(columns)}
        for first, second in PAIRS:
            if first in folded and second in folded:
                return {"text": folded[first], "text_pair": folded[second]}
    return {}


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

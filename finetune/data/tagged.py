"""Words with a tag each (IOB2 or IOBES): the reader of CoNLL files, and what tokens and tags of a row must be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune.data.file_kinds import Format, decoded_lines
from finetune.data.problems import Problems
from finetune.errors import DataError

OUTSIDE = "O"
_TAG = re.compile(r"([BIES])-(.+)")
_MARKERS = ("-DOCSTART-",)


class Conll:
    """One word a line, its fields apart by tabs or spaces, sentences apart by blank lines.

    The first field is the word and the last its tag; those between are column_2, column_3, ... A row's number is the
    line of its first word.
    """

    unit = "line"

    def __init__(self, path: Path, file_format: Format) -> None:
        self.path = path
        self.encoding = file_format.encoding
        self.skip = file_format.skip_lines
        first = next((fields for _, fields in self._words() if fields), None)
        if first is None:
            raise DataError(f"{path} holds no words.", "Put one word and its tag on each line: London B-location")
        if len(first) < 2:
            raise DataError(
                f"{path}: its first word {first[0]!r} has no tag beside it.",
                "Write the word, a tab and its tag on each line: London<tab>B-location",
            )
        self.columns = ("tokens", *(f"column_{place}" for place in range(2, len(first))), "tags")

    def rows(self, wanted: Sequence[str], problems: Problems) -> Iterator[tuple[int, Sequence[Any]]]:
        places = [self.columns.index(name) for name in wanted]
        for line, words in self._sentences():
            ragged = next((at for at, fields in enumerate(words) if len(fields) != len(self.columns)), None)
            if ragged is not None:
                problems.add(
                    "ragged rows",
                    f"{self.path}, line {line + ragged}: {len(words[ragged])} fields, but {len(self.columns)} columns "
                    "in the first line.",
                    "Each line holds a word and its tag, apart by a tab; a blank line ends a sentence.",
                )
                continue
            # Tuples say that each value has a line of its own; JSON and Parquet give lists.
            yield line, [tuple(fields[place] for fields in words) for place in places]

    def class_names(self, column: str) -> list[str] | None:
        return None

    def _sentences(self) -> Iterator[tuple[int, list[list[str]]]]:
        start, words = 0, list[list[str]]()
        for line, fields in self._words():
            if fields:
                start = start if words else line
                words.append(fields)
            elif words:
                yield start, words
                words = []
        if words:
            yield start, words

    def _words(self) -> Iterator[tuple[int, list[str]]]:
        """Line and fields of each word; no fields at the end of a sentence."""
        for line, text in enumerate(decoded_lines(self.path, self.encoding), 1):
            text = text.rstrip("\r\n")
            if line <= self.skip:
                continue
            if not text.strip() or text.split()[0] in _MARKERS:
                yield line, []
            else:
                yield line, text.split("\t") if "\t" in text else text.split()


class Tokens:
    """Values of the column of words: a list of words a row, none of them empty."""

    arrow_type = pa.list_(pa.string())

    def __init__(self, column: str, problems: Problems) -> None:
        self.column = column
        self.problems = problems

    def read(self, value: Any, path: Path, unit: str, line: int) -> list[str] | None:
        """The words, or None when a problem was noted."""
        place = f"{path}, {unit} {line}"
        if not isinstance(value, list | tuple) or not value:
            return self._bad(f"{place}: {self.column!r} holds no list of words.")
        for at, word in enumerate(value):
            if not isinstance(word, str) or not word.strip() or not _whole(word):
                return self._bad(f"{_word_place(value, path, unit, line, at)}: {str(word)[:40]!r} is no word.")
        return list(value)

    def hashed(self, value: Any) -> str:
        """What says that two rows are the same."""
        return " ".join(value)

    def notes(self) -> list[str]:
        return []

    def _bad(self, problem: str) -> list[str] | None:
        self.problems.add("rows without words", problem, 'A row is a list of words: ["In", "London"]')
        return None


class Tags:
    """Values of the column of tags: O, or B-TYPE and I-TYPE (IOB2), with E-TYPE and S-TYPE for IOBES.

    Which of the two it is shows only when all rows are read, so both are checked on the way and `finish` decides.

    Args:
        names: of integer tags, where the file states them.
    """

    arrow_type = pa.list_(pa.string())

    def __init__(self, column: str, problems: Problems, names: Sequence[str] | None = None) -> None:
        self.column = column
        self.problems = problems
        self.names = names
        self.types: set[str] = set()
        self.iobes = False
        self._broken: dict[bool, list[DataError]] = {False: [], True: []}

    def read(self, value: Any, path: Path, unit: str, line: int) -> list[str] | None:
        """The tags, or None when a problem was noted."""
        if not isinstance(value, list | tuple) or not value:
            return self._bad(f"{path}, {unit} {line}: {self.column!r} holds no list of tags.")
        tags: list[str] = []
        for at, raw in enumerate(value):
            tag = raw
            if self.names and isinstance(raw, int) and 0 <= raw < len(self.names):
                tag = self.names[raw]
            if not isinstance(tag, str) or not (tag == OUTSIDE or _TAG.fullmatch(tag)) or not _whole(tag):
                return self._bad(
                    f"{_word_place(value, path, unit, line, at)}: {str(raw)[:40]!r} in {self.column!r} is no tag."
                )
            tags.append(tag)
        for iobes, broken in self._broken.items():
            wrong = first_break(tags, iobes)
            if wrong is not None and len(broken) < 1_000:
                at, why = wrong
                broken.append(
                    DataError(
                        f"{_word_place(value, path, unit, line, at)}: the tag {tags[at]!r} {why}, which "
                        f"{'IOBES' if iobes else 'IOB2'} does not allow.",
                        "An entity begins with B- (IOBES: a single word has S-, the last of several E-); convert IOB1 "
                        "and BILOU tags first.",
                    )
                )
        for tag in tags:
            if tag != OUTSIDE:
                self.types.add(tag[2:])
                self.iobes |= tag[0] in "ES"
        return tags

    def hashed(self, value: Any) -> None:
        """Tags are no part of what makes two rows the same."""

    def notes(self) -> list[str]:
        return [f"tags are {'IOBES' if self.iobes else 'IOB2'} with {len(self.types)} types of entities"]

    def finish(self, where: str) -> tuple[str, ...]:
        """All tags of the scheme, O first, in class-index order; sequences that break it are problems."""
        for error in self._broken[self.iobes]:
            self.problems.add_error("tags out of order", error)
        if not self.types:
            self.problems.add(
                "no entities",
                f"{where}: every tag in {self.column!r} is O; there is nothing to find.",
                "Name the column of tags: --set data.tags=COLUMN",
            )
        prefixes = "BIES" if self.iobes else "BI"
        return (OUTSIDE, *(f"{prefix}-{name}" for name in sorted(self.types) for prefix in prefixes))

    def _bad(self, problem: str) -> list[str] | None:
        self.problems.add("tags of a wrong kind", problem, "A tag is O, B-TYPE or I-TYPE (IOBES: also E-TYPE, S-TYPE).")
        return None


def one_tag_a_word(row: Mapping[str, Any], place: str, problems: Problems) -> bool:
    """Whether a row has as many tags as words; else the problem is noted."""
    words, tags = len(row["tokens"]), len(row["tags"])
    if words != tags:
        problems.add(
            "rows with other numbers of words and tags",
            f"{place}: {words} words, but {tags} tags.",
            "Give each word one tag (O outside entities).",
        )
    return words == tags


def first_break(tags: Sequence[str], iobes: bool) -> tuple[int, str] | None:
    """Where a sequence first breaks IOB2 (or IOBES), and why; None where it doesn't."""
    open_type: str | None = None
    for at, tag in enumerate(tags):
        prefix, name = tag[:1], tag[2:]
        goes_on = prefix in "IE" and tag != OUTSIDE
        if goes_on and open_type != name:
            before = "begins the sentence" if at == 0 else f"follows {tags[at - 1]!r}"
            return at, before
        if iobes and not goes_on and open_type is not None:
            return at, f"follows {tags[at - 1]!r}, which has no end"
        open_type = name if tag != OUTSIDE and prefix in ("BI" if iobes else "BIES") else None
    return (len(tags) - 1, "has no end") if iobes and open_type is not None else None


def _word_place(value: Any, path: Path, unit: str, line: int, at: int) -> str:
    return f"{path}, line {line + at}" if isinstance(value, tuple) else f"{path}, {unit} {line}, word {at + 1}"


def _whole(text: str) -> bool:
    """Whether no half of a surrogate pair is in it, which no file can hold."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)

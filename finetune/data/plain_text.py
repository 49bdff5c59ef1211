"""Plain text as rows: a folder's files are one document each; a single file is cut into passages that stay in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.data.file_kinds import Format, decoded_lines
from finetune.data.problems import Problems

# A passage ends at the first blank line from here on, or at any line end at twice that: long enough that a language
# model's context is rarely cut, short enough that a megabyte gives hundreds of rows to bootstrap over.
PASSAGE_CHARS = 2_000


class Passages:
    """One text file, cut at line ends. The passages joined are the file, but for Windows line ends."""

    unit = "line"
    columns: tuple[str, ...] = ("text",)

    def __init__(self, path: Path, file_format: Format) -> None:
        self.path = path
        self.encoding = file_format.encoding
        self.skip = file_format.skip_lines

    def rows(self, wanted: Sequence[str], problems: Problems) -> Iterator[tuple[int, Sequence[Any]]]:
        held: tuple[int, str] | None = None  # so that blank lines at the end join the last passage
        for line, passage in self._passages():
            if held is not None and not passage.strip():
                held = (held[0], held[1] + passage)
                continue
            if held is not None:
                yield held[0], [held[1]]
            held = (line, passage)
        if held is not None and held[1].strip():
            yield held[0], [held[1]]

    def class_names(self, column: str) -> list[str] | None:
        return None

    def _passages(self) -> Iterator[tuple[int, str]]:
        start, lines, length = self.skip + 1, list[str](), 0
        for number, text in enumerate(decoded_lines(self.path, self.encoding), 1):
            if number <= self.skip:
                continue
            text = _unix(text)
            lines.append(text)
            length += len(text)
            if length >= 2 * PASSAGE_CHARS or (length >= PASSAGE_CHARS and not text.strip()):
                yield start, "".join(lines)
                start, lines, length = number + 1, [], 0
        if lines:
            yield start, "".join(lines)


class Documents:
    """Text files that are one document each; their ids are their names."""

    unit = "document"
    columns: tuple[str, ...] = ("id", "text")

    def __init__(self, paths: Sequence[Path], file_format: Format) -> None:
        self.path = Path(os.path.commonpath([path.parent for path in paths]))
        self.paths = list(paths)
        self.encoding = file_format.encoding

    def rows(self, wanted: Sequence[str], problems: Problems) -> Iterator[tuple[int, Sequence[Any]]]:
        for number, path in enumerate(self.paths, 1):
            text = "".join(_unix(line) for line in decoded_lines(path, self.encoding))
            if not text.strip():
                problems.add("empty texts", f"{path} holds nothing but white space.", "Take the file away.")
                continue
            values = {"id": path.relative_to(self.path).as_posix(), "text": text}
            yield number, [values[name] for name in wanted]

    def class_names(self, column: str) -> list[str] | None:
        return None


def _unix(line: str) -> str:
    return line[:-2] + "\n" if line.endswith("\r\n") else line

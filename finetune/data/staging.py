"""Streams the rows of a plan into Arrow files, one a split, with memory that doesn't grow with the texts."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.arrow_splits import RowWriter, write_splits
from finetune.data.card import LabelRule
from finetune.data.columns import ID, LABEL, ROLES
from finetune.data.dealing import Dealing
from finetune.data.labels import BAD, DROP, Classes, LabelCoder
from finetune.data.plan import DataPlan
from finetune.data.problems import Problems
from finetune.data.readers import Table
from finetune.data.scores import Scores
from finetune.data.splits import DROPPED, SPLITS, split_hash
from finetune.data.tables import columns_of, open_tables
from finetune.data.tagged import Tags, one_tag_a_word
from finetune.data.texts import Texts


@dataclass
class _Rows:
    """What is kept in memory of each row, whatever its texts are: 25 bytes while reading."""

    hashes: array = field(default_factory=lambda: array("Q"))
    id_hashes: array = field(default_factory=lambda: array("Q"))
    codes: array = field(default_factory=lambda: array("i"))
    scores: array = field(default_factory=lambda: array("d"))  # of regression only
    published: array = field(default_factory=lambda: array("b"))
    numbers: array = field(default_factory=lambda: array("I"))  # line or row in its file


@dataclass(frozen=True)
class Staged:
    """The rows in Arrow files of `folder`, split by split."""

    files: dict[str, Path]
    rows: dict[str, int]
    columns: dict[str, str]
    """Role -> column, also for those that were found by name."""
    labels: tuple[str, ...]
    class_names: tuple[str, ...]
    """Names that the file itself gives its integer labels (a ClassLabel of the hub), else empty."""
    sha256: str
    dropped: int
    notes: tuple[str, ...]


def stage(plan: DataPlan, folder: Path, problems: Problems) -> Staged:
    """Read, check, split and write all rows of a plan.

    Memory: 25 bytes a row plus one batch while reading, somewhat more while splitting; time linear in rows.

    Raises:
        DataError: at the first problem when `problems` is strict, else only where nothing can be read on.
    """
    return _Stage(plan, folder, problems).run()


class _Stage:
    def __init__(self, plan: DataPlan, folder: Path, problems: Problems) -> None:
        self.plan = plan
        self.folder = folder
        self.problems = problems
        self.notes = list(plan.notes)
        self.tables = open_tables(plan)
        self.columns = self._columns()
        self.texts = {
            role: ROLES[role].reader(column, problems) for role, column in self.columns.items() if role in ROLES
        }
        for reader in self.texts.values():
            if isinstance(reader, Texts):
                reader.drop_empty = plan.drop_empty
        self.class_names: tuple[str, ...] = ()
        self.coder = self._label_coder()
        self.scores = Scores(self.columns[LABEL], problems) if plan.scores else None
        self.tags = self.texts.get("tags")
        if isinstance(self.tags, Tags):
            self.tags.names = self.tables[0][1].class_names(self.columns["tags"])
        self.rows = _Rows()
        self.empty_texts = self.left_out = 0
        self.ends: list[int] = []  # rows read up to the end of each file
        path = plan.files[0][1]
        self.where = plan.name if plan.card else str(path if len(plan.files) == 1 else path.parent)

    def run(self) -> Staged:
        self._read()
        self._refuse_same_ids()
        codes = np.array(self.rows.codes, dtype=np.int64)
        classes = self.coder.classes(self.where) if self.coder is not None else Classes((), np.zeros(1, np.int64), ())
        indices = classes.index_of_code[codes] if len(codes) else codes
        names = self.tags.finish(self.where) if isinstance(self.tags, Tags) else classes.names
        if self.scores is not None:
            self.notes.append(self.scores.finish(self.where))
        dealing = Dealing(self.plan, self.rows.hashes, self.rows.published, self.where, self._place, self.problems)
        splits, notes = dealing.assign(indices, classes)
        splits[indices < 0] = DROPPED  # only where problems are counted: a load has stopped at them
        self.notes += [*notes, *dealing.check(splits, indices, classes)]
        with_label: NDArray[Any] | None = indices if self.coder is not None else None
        if self.scores is not None:
            with_label = np.array(self.rows.scores)
        files, sha256 = write_splits(self.folder, splits, with_label, names)
        rows = {name: int((splits == index).sum()) for index, name in enumerate(SPLITS)}
        dropped = self.coder.dropped if self.coder is not None else 0
        if dropped:
            zero = "with the value 0 " if self.plan.label_rule is not None and self.plan.label_rule.sign else ""
            self.notes.append(f"{dropped} rows {zero}were left out by the card's label rule")
        if self.left_out:
            self.notes.append(f"{self.left_out} rows were left out because a text of theirs is empty, as the card says")
        dropped += self.left_out
        self.notes += [note for texts in self.texts.values() for note in texts.notes()] + list(classes.notes)
        return Staged(files, rows, self.columns, names, self.class_names, sha256, dropped, tuple(self.notes))

    def _columns(self) -> dict[str, str]:
        self.tables, found, notes = columns_of(self.plan, self.tables)
        self.notes += notes
        return found

    def _label_coder(self) -> LabelCoder | None:
        if LABEL not in self.columns or self.plan.scores:
            return None
        rule, labels = self.plan.label_rule, self.plan.labels
        names = self.tables[0][1].class_names(self.columns[LABEL]) if self.plan.card is None else None
        if names:
            self.class_names = tuple(names)
            rule, labels = LabelRule(map={str(index): name for index, name in enumerate(names)}), tuple(names)
        return LabelCoder(self.columns[LABEL], rule, labels, self.problems)

    def _read(self) -> None:
        """Stream all files into one Arrow file (id and texts); everything else of a row goes into `self.rows`."""
        found = {role: self.columns[role] for role in self.plan.columns if self.plan.columns[role] is None}
        if found:
            self.notes.append("found by name: " + ", ".join(f"{role} is column {col!r}" for role, col in found.items()))
        with RowWriter(self.folder, {role: texts.arrow_type for role, texts in self.texts.items()}) as writer:
            for split, table in self.tables:
                for row in self._rows_of(split, table):
                    writer.add(row)
                self.ends.append(len(self.rows.codes))
                if self.ends[-1] == (self.ends[-2] if len(self.ends) > 1 else 0):
                    self.problems.add(
                        "files without a row",
                        f"{table.path} has {'a header but ' if table.unit == 'line' else ''}no row to use.",
                        "Add rows, or take the file away.",
                    )

    def _rows_of(self, split: str, table: Table) -> Iterator[list[Any]]:
        wanted = list(dict.fromkeys(self.columns.values()))
        at = {role: wanted.index(column) for role, column in self.columns.items()}
        # Published splits number their rows from 1 each, and so need their name in the id.
        prefix = "" if split == "all" else f"{split}/"
        rows, coder, published = self.rows, self.coder, SPLITS.index("train" if split == "all" else split)
        shard = sum(1 for other, earlier in self.tables if other == split and earlier.path < table.path)
        if shard and ID not in at:
            prefix += f"{shard}/"
        paired = {"tokens", "tags"} <= at.keys()
        for number, values in table.rows(wanted, self.problems):
            texts = [texts.read(values[at[role]], table.path, table.unit, number) for role, texts in self.texts.items()]
            if any(text is None for text in texts):
                if (
                    empty := sum(reader.left_out for reader in self.texts.values() if isinstance(reader, Texts))
                ) > self.empty_texts:
                    self.empty_texts = empty  # both texts of a row may be empty, and it is one row
                    self.left_out += 1
                continue
            if paired and not one_tag_a_word(
                dict(zip(self.texts, texts, strict=True)), f"{table.path}, {table.unit} {number}", self.problems
            ):
                continue
            score = None
            if self.scores is not None:
                score = self.scores.read(values[at[LABEL]], table.path, table.unit, number)
                if score is None:
                    continue
            code = 0 if coder is None else coder.code(values[at[LABEL]], table.path, table.unit, number)
            if code in (DROP, BAD):
                continue
            name = number if ID not in at else self._id(values[at[ID]], table, number)
            if name is None:
                continue
            whole = [text for text in texts if text is not None]
            hashed = [reader.hashed(text) for reader, text in zip(self.texts.values(), whole, strict=True)]
            rows.hashes.append(split_hash(self.plan.salt, [text for text in hashed if text is not None]))
            if score is not None:
                rows.scores.append(score)
            if ID in at:  # line numbers are unique as they are
                rows.id_hashes.append(split_hash("", [f"{prefix}{name}".encode().hex()]))
            rows.codes.append(code)
            rows.published.append(published)
            rows.numbers.append(number)
            yield [f"{prefix}{name}", *whole]

    def _id(self, value: object, table: Table, number: int) -> str | None:
        # Half a surrogate pair, which JSON can hold, can't be written to any file.
        name = "" if value is None else str(value).strip().encode("utf-8", "replace").decode()
        if not name:
            self.problems.add(
                "missing ids",
                f"{table.path}, {table.unit} {number}: the id in {self.columns[ID]!r} is missing.",
                "Fill it in, or rename the column if it is no id.",
            )
            return None
        return name

    def _refuse_same_ids(self) -> None:
        hashes = np.array(self.rows.id_hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        twins = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        for first, second in sorted(zip(order[twins].tolist(), order[twins + 1].tolist(), strict=True), key=max):
            self.problems.add(
                "ids that stand twice",
                f"{self._place(second)}: its id in column {self.columns.get(ID, '')!r} is also that of "
                f"{self._place(first)}.",
                "Make ids unique, or rename the column if it is no id.",
            )

    def _place(self, row: int) -> str:
        table = self.tables[bisect.bisect_right(self.ends, row)][1]
        return f"{table.path}, {table.unit} {self.rows.numbers[row]}"

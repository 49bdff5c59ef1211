"""Turns raw label values into class indices, and refuses labels that are probably slips."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.card import LabelRule
from finetune.data.near import near
from finetune.data.problems import Problems
from finetune.errors import DataError

DROP = -1
BAD = -2

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_A_LABEL = ("", "nan", "<na>")  # what pandas writes for a missing value
_MANY = 1_000


@dataclass
class _Seen:
    code: int
    place: str
    kind: str
    count: int = 1


@dataclass(frozen=True)
class Classes:
    """Class names in index order, and the class index of every code that `LabelCoder.code` gave."""

    names: tuple[str, ...]
    index_of_code: NDArray[np.int64]
    notes: tuple[str, ...]


class LabelCoder:
    """Gives every raw label a small code while rows stream by; `classes` then orders and checks them."""

    def __init__(self, column: str, rule: LabelRule | None, labels: tuple[str, ...], problems: Problems) -> None:
        self.column = column
        self.rule = rule
        self.labels = labels
        self.problems = problems
        self.dropped = 0
        self._seen: dict[str, _Seen] = {}
        self._rows = 0

    def code(self, value: Any, path: Path, unit: str, line: int) -> int:
        """The code of one raw value; DROP when the rule leaves the row out, BAD when a problem was noted."""
        place = f"{path}, {unit} {line}"
        kind, raw = _kind_of(value)
        if kind == "missing":
            return self._bad(
                "missing labels", f"{place}: no label in column {self.column!r}.", "Fill it in, or delete the row."
            )
        if kind == "other":
            return self._bad(
                "labels of a wrong kind",
                f"{place}: the label in {self.column!r} is a {raw}.",
                "A label is a word or a whole number.",
            )
        if self.rule is not None:
            ruled = self._ruled(raw, place)
            if isinstance(ruled, int):
                return ruled
            kind, raw = "text", ruled
        self._rows += 1
        seen = self._seen.get(raw)
        if seen is None:
            seen = self._seen[raw] = _Seen(len(self._seen), place, kind, 0)
            if len(self._seen) > _MANY and len(self._seen) > self._rows / 2:
                raise DataError(
                    f"{place}: column {self.column!r} holds {len(self._seen)} different values in "
                    f"{self._rows} rows, so it is not a label.",
                    "Name the label's column: --set data.label=COLUMN",
                )
        elif seen.kind != kind:
            return self._bad(
                "labels of mixed types",
                f"{place}: the label {raw!r} is a {kind} here, but a {seen.kind} at {seen.place}.",
                "Write all labels the same way.",
            )
        seen.count += 1
        return seen.code

    def classes(self, where: str) -> Classes:
        """Order the labels and check them as a whole.

        Integer labels sort by number, others by alphabet, unless a card (or the file itself) states the order.
        """
        names = self._clean_names()
        found = sorted(set(names.values()), key=lambda name: (int(name), "") if self._numbers else (0, name))
        notes = []
        if self.labels:
            for raw, name in names.items():
                if name not in self.labels:
                    meant = near(name, self.labels)
                    self.problems.add(
                        "labels that the card doesn't list",
                        f"{self._seen[raw].place}: the label {raw!r} is none of the stated labels.",
                        f"Did you mean {meant!r}?" if meant else f"They are {', '.join(self.labels[:20])}.",
                    )
            absent = [label for label in self.labels if label not in found]
            if absent:
                self.problems.add(
                    "labels without a row",
                    f"{where}: no row has the label {absent[0]!r}, which `labels` states.",
                    "Take it out of `labels`, or add rows.",
                )
        order = self.labels or tuple(found)
        if len(found) < 2:
            only = f"only the label {found[0]!r}" if found else "no label at all"
            self.problems.add(
                "one class only",
                f"{where}: column {self.column!r} holds {only}; there is nothing to tell apart.",
                "Name another column (--set data.label=COLUMN), or add rows of a second class.",
            )
        index_of_code = np.full(len(self._seen), BAD, dtype=np.int64)
        for raw, name in names.items():
            if name in order:
                index_of_code[self._seen[raw].code] = order.index(name)
        if any(raw != name for raw, name in names.items()) and self.rule is None:
            notes.append("labels are written without surrounding space, whole numbers without '.0'")
        return Classes(order, index_of_code, tuple(notes))

    def _ruled(self, raw: str, place: str) -> str | int:
        assert self.rule is not None
        if self.rule.sign:
            if not _NUMBER.fullmatch(raw.strip()):
                return self._bad(
                    "labels that are no number",
                    f"{place}: {raw!r} in {self.column!r} is no number, but label_rule takes its sign.",
                    "Mend the row, or the rule in the card.",
                )
            number = float(raw)
            if number == 0.0:
                self.dropped += 1
                return DROP
            return self.labels[0] if number < 0 else self.labels[1]
        assert self.rule.map is not None
        if raw.strip() not in self.rule.map:
            return self._bad(
                "labels that the rule doesn't list",
                f"{place}: the label {raw!r} is not in label_rule.map.",
                f"Its keys are {', '.join(self.rule.map)}.",
            )
        label = self.rule.map[raw.strip()]
        if label is None:
            self.dropped += 1
            return DROP
        return label

    def _clean_names(self) -> dict[str, str]:
        """Raw value -> label name, after refusing pairs that are probably one label written two ways."""
        raws = list(self._seen)
        self._numbers = bool(raws) and self.rule is None and all(_INTEGER.fullmatch(raw.strip()) for raw in raws)
        if self._numbers:
            return {raw: str(int(raw.partition(".")[0])) for raw in raws}
        kinds: dict[str, str] = {}
        for seen in self._seen.values():
            kinds.setdefault(seen.kind, seen.place)
        if len(kinds) > 1:
            (one, place_one), (other, place_other) = list(kinds.items())[:2]
            self.problems.add(
                "labels of mixed types",
                f"{place_other}: the label is a {other}, but a {one} at {place_one}.",
                "Write all labels the same way.",
            )
        if self.rule is None and raws and all(_NUMBER.fullmatch(raw.strip()) for raw in raws):
            fraction = next(raw for raw in raws if not _INTEGER.fullmatch(raw.strip()))
            self.problems.add(
                "labels that are measurements",
                f"{self._seen[fraction].place}: the label {fraction!r} in {self.column!r} has a fraction, so it is a "
                "measurement and no class.",
                "Write classes into the column, or a card whose `label_rule` makes them (sign, or map).",
            )
        by_folded: dict[str, str] = {}
        for raw in raws:
            folded = unicodedata.normalize("NFKC", raw).strip().casefold()
            twin = by_folded.setdefault(folded, raw)
            if twin != raw:
                self.problems.add(
                    "labels that differ in case or space only",
                    f"{self._seen[raw].place}: the label {raw!r} ({self._seen[raw].count} rows) differs from "
                    f"{twin!r} ({self._seen[twin].count} rows, at {self._seen[twin].place}) in case or space only.",
                    "Write them the same way, or join them by `label_rule: {map: ...}` in a card.",
                )
        return {raw: raw.strip() for raw in raws}

    def _bad(self, kind: str, problem: str, fix: str) -> int:
        self.problems.add(kind, problem, fix)
        return BAD


def _kind_of(value: Any) -> tuple[str, str]:
    """(kind for the mixed-types check, raw label as text)."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            return "other", "text with half a surrogate pair"
        return ("missing", "") if value.strip().lower() in _NOT_A_LABEL else ("text", value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing", ""
    if isinstance(value, bool):
        return "truth value", str(value).lower()
    if isinstance(value, int):
        return "number", str(value)
    if isinstance(value, float):
        return "number", str(int(value)) if value.is_integer() else repr(value)
    return "other", type(value).__name__

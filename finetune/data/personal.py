"""Personal data and secrets in texts: found by what can be checked, counted, and taken out of a copy.

What has a form is found: e-mail addresses, phone numbers (libphonenumber where they name their country), payment cards
and IBANs (python-stdnum: check digits, and each country's account numbers), IP addresses and well-known keys. No names,
addresses or birthdays, and no number that is written in words or broken up; what is left may still name a person.
Presidio would find names too, but asks the network for a list of domains and a model of a language for every text.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.credentials import KEYS
from finetune.data.columns import LABEL
from finetune.data.file_kinds import kind_of
from finetune.data.plan import DataPlan
from finetune.data.problems import Problems
from finetune.data.readers import MISSING
from finetune.data.tables import Tables, columns_of, open_tables
from finetune.errors import ConfigError, DataError
from finetune.files import sha256_file, whole_file, write_json

FIRST = 3


def _card(text: str) -> bool:
    from stdnum import luhn

    digits = "".join(letter for letter in text if letter.isdigit())
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def _iban(text: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(text))


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _phone(text: str) -> bool:
    """With a +, a number that its country could give; else long enough and not a date, a year range or a version."""
    if text.startswith("+"):
        import phonenumbers

        try:
            return bool(phonenumbers.is_possible_number(phonenumbers.parse(text, None)))
        except phonenumbers.NumberParseException:
            return False
    digits = sum(letter.isdigit() for letter in text)
    if re.fullmatch(r"\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{4}", text):
        return False
    return 9 <= digits <= 15


@dataclass(frozen=True)
class Kind:
    """What is looked for: a pattern, and what a find of it must also be."""

    name: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = bool


# In this order: a find of one is not looked at again, so a card number is no phone number.
KINDS = (
    Kind("key", KEYS),
    Kind("e-mail", re.compile(r"(?<![\w.+-])[\w+-]+(?:\.[\w+-]+)*@(?:[\w-]+\.)+[A-Za-z]{2,24}(?![\w-])")),
    Kind("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b"), _iban),
    Kind("payment card", re.compile(r"(?<![\d.+-])\d(?:[ -]?\d){12,18}(?![\d-])"), _card),
    Kind("IP address", re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)"), _address),
    Kind("IP address", re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])"), _address),
    Kind(
        "phone number",
        re.compile(
            r"(?<![\w.,-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,5}\)[ .-]?)?\d{2,5}(?:[ .-]\d{2,8}){1,4}(?![\w-]|[.,]\d)"
        ),
        _phone,
    ),
    Kind("phone number", re.compile(r"(?<![\w.])\+\d{7,15}(?!\w)"), _phone),
)


@dataclass
class Personal:
    """What was found.

    Attributes:
        counts: kind to finds.
        first: kind to the places of the first finds. The finds themselves are not repeated.
        rows: rows with at least one.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)
    rows: int = 0

    def lines(self) -> list[str]:
        """What `finetune data check --pii` prints."""
        lines = [f"personal data      {self.rows:,} rows with " + (_listed(self.counts) or "none that has a form")]
        lines += [f"  {kind}: {', '.join(places)}" for kind, places in self.first.items()]
        return [*lines, "  names, addresses and what is written in words can't be found so"]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} x {kind}" for kind, count in counts.items())


def redacted(text: str, found: dict[str, int] | None = None) -> str:
    """A text with `[KIND]` in place of each find; counts are added to `found`."""
    for kind in KINDS:

        def replaced(match: re.Match[str], kind: Kind = kind) -> str:
            if not kind.holds(match.group()):
                return match.group()
            if found is not None:
                found[kind.name] = found.get(kind.name, 0) + 1
            return f"[{kind.name}]"

        text = kind.pattern.sub(replaced, text)
    return text


def find_personal(plan: DataPlan, out: Path | None = None) -> Personal:
    """Look through every text of every column but the label's; with `out`, write the rows without what was found.

    Args:
        out: a new .jsonl file, or a new folder of one a split where the data has several files. What was done is kept
            beside each, for the notes of runs and cards.

    Raises:
        ConfigError: `out` exists, or is not what is needed.
        DataError: the data has no rows of columns (tagged words, images).
    """
    tables = open_tables(plan)
    for _, path in plan.files:
        if (plan.format.kind or kind_of(path)) == "conll":
            raise DataError(f"{path} holds tagged words, which --pii does not read.", "Check the text they came from.")
    if out is not None:
        _refuse(out, tables)
    label = columns_of(plan, tables)[1].get(LABEL)
    found = Personal()
    for split, table in tables:
        if out is None:
            for _ in _rows(table, label, found):
                pass
        else:
            path = out if len(tables) == 1 else out / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            before = dict(found.counts)
            with whole_file(path) as file:
                for row in _rows(table, label, found):
                    file.write((json.dumps(row, ensure_ascii=False, default=str) + "\n").encode())
            replaced = {kind: count - before.get(kind, 0) for kind, count in found.counts.items()}
            write_json(_said_of(path), {"sha256": sha256_file(path), "replaced": replaced})
    return found


def redactions(files: Sequence[tuple[str, Path]]) -> tuple[str, ...]:
    """What is to be said of files that `--redact` wrote, by the files beside them; nothing of one changed since."""
    notes = []
    for _, path in files:
        try:
            said = json.loads(_said_of(path).read_text("utf-8"))
            counts = {str(kind): int(count) for kind, count in said["replaced"].items() if int(count)}
            same = said["sha256"] == sha256_file(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # none, or nobody's who would know
        if same:
            kinds = ", ".join(dict.fromkeys(kind.name for kind in KINDS))
            notes.append(
                f"{path.name}: personal data that has a form ({kinds}) was looked for and taken out of this copy "
                f"(finetune data check --pii --redact): {_listed(counts) or 'none was there'}"
            )
        else:
            notes.append(f"{path.name} was changed after personal data had been taken out of it")
    return tuple(notes)


def _said_of(path: Path) -> Path:
    # Hidden, so that a folder of data is read without it.
    return path.with_name(f".{path.name}.redacted.json")


def _refuse(out: Path, tables: Tables) -> None:
    if out.exists():
        raise ConfigError(f"--redact {out} exists already; nothing is overwritten.", "Name a new file.")
    if len(tables) == 1 and out.suffix != ".jsonl":
        raise ConfigError(f"--redact {out} is no .jsonl file.", "The copy is JSON Lines: name it so.")
    if len(tables) > 1 and (out.suffix or len({split for split, _ in tables}) < len(tables)):
        raise ConfigError(
            f"--redact {out} can't hold {len(tables)} files.",
            "Name a new folder; where a split has several files, redact them one by one.",
        )


def _rows(table: Any, label: str | None, found: Personal) -> Iterator[dict[str, Any]]:
    columns: Sequence[str] = table.columns
    for line, values in table.rows(columns, Problems(strict=True)):
        counts: dict[str, int] = {}
        row = {
            name: value if name == label else _cleaned(value, counts)
            for name, value in zip(columns, values, strict=True)
            if value is not MISSING
        }
        found.rows += bool(counts)
        for kind, count in counts.items():
            found.counts[kind] = found.counts.get(kind, 0) + count
            places = found.first.setdefault(kind, [])
            if len(places) < FIRST:
                places.append(f"{table.path.name}, {table.unit} {line}")
        yield row


def _cleaned(value: Any, counts: dict[str, int]) -> Any:
    if isinstance(value, str):
        return redacted(value, counts)
    if isinstance(value, list):
        return [_cleaned(inner, counts) for inner in value]
    if isinstance(value, dict):
        return {name: _cleaned(inner, counts) for name, inner in value.items()}
    return value

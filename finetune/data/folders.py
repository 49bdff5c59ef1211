"""Finds the train, valid and test files of a folder by their names, and refuses to guess."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from finetune.data.file_kinds import SUFFIXES
from finetune.errors import DataError

NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
_SHARD = re.compile(r"[-_.]\d{4,5}([-_.]of[-_.]\d{4,5})?(-[0-9a-f]{6,})?")
_ORDER = ("train", "valid", "test", "all")


def files_by_split(folder: Path, plain_text: bool = False) -> list[tuple[str, Path]]:
    """(split, file) in reading order: train.csv, dev.tsv, data/test-00000-of-00001.parquet, train/0000.parquet, ...

    A single data file of any name counts as "all".

    Args:
        plain_text: a folder without tables may hold .txt files, of which each is a document (see `is_documents`).

    Raises:
        DataError: no data file, no training file, or more than one reading.
    """
    known = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.relative_to(folder))
    ]
    found = [path for path in known if SUFFIXES[path.suffix.lower()] != "txt"]
    if not found and plain_text and known:
        if is_documents(known):
            return _documents_by_split(folder, known)
        found = known
    if not found:
        raise DataError(
            f"{folder} holds no data file ({', '.join(name for name in SUFFIXES if plain_text or name != '.txt')}).",
            "Put train.csv and test.csv there, or give the file itself.",
        )
    by_root: dict[Path, list[tuple[str, Path]]] = {}
    for path in found:
        split, root = _split_of(path)
        if split is not None:
            by_root.setdefault(root, []).append((split, path))
    if not by_root:
        if len(found) == 1:
            return [("all", found[0])]
        raise _ambiguous(folder, found, "none of them is named train, valid or test")
    # The folder's own files come first; `data` is where the hub's repositories keep theirs.
    roots = [root for root in (folder, folder / "data") if root in by_root] or sorted(by_root)
    if len(roots) > 1 and roots[0] != folder:
        raise DataError(
            f"{folder} holds several data sets: {', '.join(str(root.relative_to(folder)) for root in roots[:8])}.",
            f"Give one of them: --data {roots[0]}",
        )
    files = by_root[roots[0]]
    kinds = sorted({path.suffix.lower() for _, path in files})
    if len(kinds) > 1:
        raise _ambiguous(folder, [path for _, path in files], f"they are of several kinds ({', '.join(kinds)})")
    for split in ("train", "valid", "test"):
        same = [path for of, path in files if of == split]
        if len(same) > 1 and not all(_is_shard(path) for path in same):
            raise _ambiguous(folder, same, f"more than one is the {split} split")
    if not any(split == "train" for split, _ in files):
        raise DataError(
            f"{folder} has {', '.join(path.name for _, path in files)}, but no training file.",
            f"Name it train{kinds[0]}, or give one file alone and let it be split.",
        )
    if {split for split, _ in files} == {"train"}:
        return [("all", path) for _, path in files]
    return sorted(files, key=lambda item: (_ORDER.index(item[0]), item[1]))


def is_documents(files: Sequence[Path]) -> bool:
    """Whether several files are plain text and none is named after a split: then each is a document."""
    return len(files) > 1 and all(path.suffix.lower() == ".txt" and path.stem.casefold() not in NAMES for path in files)


def _documents_by_split(folder: Path, files: list[Path]) -> list[tuple[str, Path]]:
    """Documents by the folder named after a split that they stand in; all together where there is none."""
    named: list[tuple[str | None, Path]] = []
    for path in files:
        parts = [NAMES.get(part.casefold()) for part in path.relative_to(folder).parts[:-1]]
        named.append((next((part for part in parts if part), None), path))
    splits = {split for split, _ in named}
    if splits <= {None, "train"}:
        return [("all", path) for path in files]
    if None in splits:
        raise _ambiguous(folder, [path for split, path in named if split is None], "some stand in no split's folder")
    if "train" not in splits:
        raise DataError(f"{folder} has no training documents.", "Put them into a folder named train.")
    return sorted(((split, path) for split, path in named if split), key=lambda item: (_ORDER.index(item[0]), item[1]))


def _split_of(path: Path) -> tuple[str | None, Path]:
    """The split that a file's name or its folder's name says, and the folder that holds the whole data set."""
    stem = _SHARD.sub("", path.stem.casefold())
    if stem in NAMES:
        return NAMES[stem], path.parent
    if path.parent.name.casefold() in NAMES and re.fullmatch(r"\d+", stem):
        return NAMES[path.parent.name.casefold()], path.parent.parent
    return None, path.parent


def _is_shard(path: Path) -> bool:
    return bool(_SHARD.search(path.stem)) or bool(re.fullmatch(r"\d+", path.stem))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _ambiguous(folder: Path, files: list[Path], why: str) -> DataError:
    names = ", ".join(str(path.relative_to(folder)) for path in files[:8]) + (", ..." if len(files) > 8 else "")
    return DataError(
        f"{folder}: it isn't clear which files are meant: {why} ({names}).",
        "Name them train.csv, valid.csv and test.csv (one kind), or give one file.",
    )

"""One loader for images from everywhere: decoded and resized once, checked, dealt out to splits, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import DataSettings
from finetune.data.dealing import SMALL_SPLIT
from finetune.data.image_cache import Decoded, Resizing, decode_all
from finetune.data.image_sources import ImageSource, find_images
from finetune.data.images import ImageRows
from finetune.data.labels import LabelCoder
from finetune.data.loader import LoadedData
from finetune.data.problems import Problems
from finetune.data.splits import DROPPED, SPLITS, TEST, TRAIN, VALID, assign, first_in_hash_order
from finetune.errors import DataError
from finetune.image_settings import ImageData

__all__ = ["Resizing", "load_images"]

SHOWN = 3


def load_images(settings: ImageData, resizing: Resizing) -> tuple[LoadedData, dict[str, ImageRows]]:
    """Load what `settings.source` names: what a run records of it, and the images by split.

    Raises:
        DataError: the data is wrong; names the file, or the row of the table.
        SourceError: it can't be fetched, or the cache folder can't be written.
        ConfigError: a setting contradicts the source.
    """
    source = find_images(settings)
    if not source.items:
        raise DataError(f"{settings.source} holds no images.", "Put each image into a folder named after its class.")
    decoded = decode_all(source.items, settings.max_megapixels, resizing)
    notes = list(source.notes) + _refuse_broken(source, decoded, settings)
    usable = np.array([index for index in range(len(source.items)) if index not in decoded.broken], dtype=np.int64)
    labels, names = _labels(source, usable)
    digests = [decoded.digests[index] for index in usable]
    published = np.array([SPLITS.index(source.items[index].split) for index in usable], dtype=np.int8)
    splits = _assign(settings, source, digests, labels, published, names, notes)
    _check(settings, splits, labels, names, source.name, notes)
    notes += _twins(digests, labels, splits)
    rows, tables = {}, {}
    from datasets import Dataset

    content: dict[str, Any] = {"labels": list(names)}
    for number, split in enumerate(SPLITS):
        chosen = usable[splits == number]
        rows[split] = ImageRows(
            decoded.pixels, decoded.offsets[:-1][chosen], decoded.offsets[1:][chosen], decoded.heights[chosen],
            labels[splits == number], resizing.square,
        )  # fmt: skip
        ids = [source.items[index].id for index in chosen]
        tables[split] = Dataset.from_dict({"id": ids, "label": rows[split].labels})
        content[split] = [[decoded.digests[index] for index in chosen], rows[split].labels.tolist()]
    sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return LoadedData(source.name, source.card, tables, names, sha256, tuple(notes)), rows


def _refuse_broken(source: ImageSource, decoded: Decoded, settings: ImageData) -> list[str]:
    if not decoded.broken:
        return []
    first = [f"{source.items[index].place}: {reason}" for index, reason in list(decoded.broken.items())[:SHOWN]]
    more = f"; and {len(decoded.broken) - SHOWN} more" if len(decoded.broken) > SHOWN else ""
    found = f"{len(decoded.broken)} of {len(source.items)} images are broken: {'; '.join(first)}{more}"
    if not settings.skip_broken:
        raise DataError(f"{found}.", "Mend them or take them away, or leave them out: --set data.skip_broken=true")
    return [f"{found}; they are left out"]


def _labels(source: ImageSource, usable: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    coder = LabelCoder("label", None, source.labels, Problems(strict=True))
    codes = []
    for index in usable:
        item = source.items[index]
        codes.append(coder.code(item.label, item.path, item.unit or "image", item.number or 1))
    classes = coder.classes(source.name)
    return classes.index_of_code[np.array(codes, dtype=np.int64)], classes.names


def _assign(
    settings: ImageData,
    source: ImageSource,
    digests: Sequence[str],
    labels: NDArray[np.int64],
    published: NDArray[np.int8],
    names: tuple[str, ...],
    notes: list[str],
) -> NDArray[np.int8]:
    """Split of each image; by a hash of its pixels, so that twins stand together, where none is published."""
    defaults = {key: field.default for key, field in type(settings).model_fields.items()}
    rule = source.card.block.splits if source.card is not None else None

    def stated(key: str) -> Any:
        value = getattr(settings, key)
        return getattr(rule, key) if rule is not None and value == DataSettings.model_fields[key].default else value

    salt = settings.split_salt
    if rule is not None and salt == defaults["split_salt"]:
        salt = rule.salt
    hashes = np.array(
        [int.from_bytes(hashlib.sha256(f"{salt}\0{some}".encode()).digest()[:8], "big") for some in digests], np.uint64
    )
    splits = assign(hashes, labels, published, valid_share=stated("valid_share"), test_share=stated("test_share"))
    most = settings.rows_per_class
    if most is None and rule is not None:
        most = rule.rows_per_class
    if most:
        for label, name in enumerate(names):
            rows = np.flatnonzero((splits == TRAIN) & (labels == label))
            if len(rows) < most:
                raise DataError(
                    f"{source.name}: the class {name!r} has {len(rows)} training images, fewer than "
                    f"data.rows_per_class={most}.",
                    f"--set data.rows_per_class={max(1, len(rows))}, or 0 for all.",
                )
            _keep(splits, rows, first_in_hash_order(hashes[rows], most))
        kept = int((splits == TRAIN).sum())
        notes.append(f"{most} training images of each class are kept, {kept} in all (data.rows_per_class)")
    in_train = np.flatnonzero(splits == TRAIN)
    if settings.max_train_rows is not None and settings.max_train_rows < len(in_train):
        _keep(splits, in_train, first_in_hash_order(hashes[in_train], settings.max_train_rows))
        notes.append(f"data.max_train_rows keeps {settings.max_train_rows} of {len(in_train)} training rows")
    for later, earlier in ((VALID, (TRAIN,)), (TEST, (TRAIN, VALID))):
        leaked = int(np.isin(hashes[splits == later], hashes[np.isin(splits, earlier)]).sum())
        if leaked:
            notes.append(
                f"{leaked} images of the published {SPLITS[later]} split have the pixels of one in "
                f"{' or '.join(SPLITS[index] for index in earlier)}; they stay, as published"
            )
    return splits


def _keep(splits: NDArray[np.int8], rows: NDArray[np.int64], kept: NDArray[np.int64]) -> None:
    splits[rows] = DROPPED
    splits[rows[kept]] = TRAIN


def _check(
    settings: ImageData,
    splits: NDArray[np.int8],
    labels: NDArray[np.int64],
    names: tuple[str, ...],
    source: str,
    notes: list[str],
) -> None:
    for number, split in enumerate(SPLITS):
        count = int((splits == number).sum())
        if count == 0:
            raise DataError(
                f"{source}: {len(splits)} images are too few to split; {split} gets none.",
                "Add images, or give the folders train, valid and test.",
            )
        if count < SMALL_SPLIT and number != TRAIN:
            notes.append(f"{split} has only {count} images, so its intervals will be wide")
    unseen = np.setdiff1d(labels[splits != DROPPED], labels[splits == TRAIN])
    if len(unseen) and settings.max_train_rows is None:
        raise DataError(
            f"{source}: no training image has the class {names[unseen[0]]!r}.",
            "Add images of it, or split by another salt: --set data.split_salt=SALT",
        )


def _twins(digests: Sequence[str], labels: NDArray[np.int64], splits: NDArray[np.int8]) -> list[str]:
    used = [index for index in range(len(digests)) if splits[index] != DROPPED]
    seen: dict[str, int] = {}
    twins = conflicts = 0
    for index in used:
        first = seen.setdefault(digests[index], index)
        twins += first != index
        conflicts += labels[first] != labels[index]
    notes = [f"{twins} images have the same pixels as one before them"] if twins else []
    return notes + ([f"{conflicts} images have the pixels of one with another label"] if conflicts else [])

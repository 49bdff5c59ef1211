"""`finetune data leaks`: test rows that training rows hold too, exactly or nearly, and a run's score without them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.config import DataSettings
from finetune.data.check_kinds import kind_of_rows
from finetune.data.columns import ID, LABEL
from finetune.data.image_checks import USUAL
from finetune.data.image_loader import load_images
from finetune.data.loader import LoadedData, load_data
from finetune.data.near_duplicates import WORDS, Kind, Leak, find_leaks
from finetune.errors import ConfigError, DataError
from finetune.evaluation.intervals import Interval
from finetune.evaluation.stored import METRICS, read_predictions
from finetune.image_settings import ImageData
from finetune.options import recorded_recipe
from finetune.report.summary import clean, cut, pad, title
from finetune.run_data import run_data
from finetune.run_folder import read_record
from finetune.slices import FEW_ROWS, score

if TYPE_CHECKING:
    from finetune.data.images import ImageRows
    from finetune.recipe import Recipe

TEXT_WIDTH = 88
KINDS: tuple[Kind, ...] = ("exact", "normalised", "near")
THRESHOLD = 0.7


@dataclass(frozen=True)
class Found:
    """The leaks of a data set."""

    name: str
    rows: dict[str, int]
    near: str
    """What near means, in words."""
    leaks: list[Leak]
    shown: Mapping[str, list[str]]
    """Split -> each row as a line to show."""
    ids: Mapping[str, list[str]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with the ids of the rows."""
        leaks = []
        for leak in self.leaks:
            one, other = (self.ids[split][row] for split, row in _places(leak))
            leaks.append({**asdict(leak), "id": one, "earlier_id": other})
        return {"name": self.name, "rows": self.rows, "near": self.near, "leaks": leaks}


def text_leaks(data: LoadedData, threshold: float) -> Found:
    """Leaks among texts.

    Args:
        threshold: least Jaccard similarity of near rows.

    Raises:
        DataError: the rows hold no texts.
    """
    first = data.splits["train"][0]
    names = [name for name, value in first.items() if name not in (ID, LABEL) and _as_text(value) is not None]
    if not names:
        raise DataError(f"{data.name} has no column of texts.", "Name one by --set data.text=COLUMN.")
    texts = {
        split: [
            tuple(str(_as_text(value)) for value in row) for row in zip(*(rows[name] for name in names), strict=True)
        ]
        for split, rows in data.splits.items()
    }
    return Found(
        data.name,
        {split: len(rows) for split, rows in texts.items()},
        f"Jaccard similarity of {WORDS}-word shingles of {threshold:g} or more",
        find_leaks(texts, threshold),
        {split: [" | ".join(row) for row in rows] for split, rows in texts.items()},
        {split: [str(name) for name in rows[ID]] for split, rows in data.splits.items()},
    )


def _as_text(value: Any) -> str | None:
    """A text, or words as one; None for what is neither (tags, messages)."""
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return " ".join(value)
    return value if isinstance(value, str) else None


def image_leaks(data: LoadedData, rows: Mapping[str, ImageRows]) -> Found:
    """Leaks among images: the same pixels once resized, or nearly the same picture (perceptual hash)."""
    from finetune.data.image_hash import LEAST_CORRELATION, MOST_BITS, near_images, small_grey

    pixels: dict[str, tuple[str, int]] = {}
    leaks: list[Leak] = []
    before: list[str] = []
    grey = {split: small_grey(some) for split, some in rows.items()}
    for split, some in rows.items():
        digests = [hashlib.sha256(some.image(row).numpy().tobytes()).hexdigest() for row in range(len(some))]
        near = {}
        if before:
            places = [(name, row) for name in before for row in range(len(rows[name]))]
            found = near_images(np.concatenate([grey[name] for name in before]), grey[split])
            near = {row: (*places[at], alike) for row, at, alike in found}
        for row, digest in enumerate(digests):
            if digest in pixels:
                leaks.append(Leak(split, row, "exact", *pixels[digest], 1.0))
            elif row in near:
                leaks.append(Leak(split, row, "near", *near[row]))
        for row, digest in enumerate(digests):
            pixels.setdefault(digest, (split, row))
        before.append(split)
    ids = {split: [str(name) for name in some[ID]] for split, some in data.splits.items()}
    return Found(
        data.name,
        {split: len(some) for split, some in rows.items()},
        f"perceptual hashes within {MOST_BITS} of 63 bits, and a correlation of {LEAST_CORRELATION:g} or more in grey",
        leaks,
        ids,
        ids,
    )


def print_leaks(found: Found, examples: int, as_json: bool) -> None:
    """Counts by split and kind, and the first rows of each kind."""
    if as_json:
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
        return
    print(f"{clean(found.name)}: {', '.join(f'{split} {count:,}' for split, count in found.rows.items())}")
    print("Rows that also stand in a split before theirs (train, valid, test):")
    print(f"  {'':<8}{'exact':>10}{'normalised':>12}{'near':>8}{'in all':>16}")
    for split in list(found.rows)[1:]:
        counts = Counter(leak.kind for leak in found.leaks if leak.split == split)
        numbers = [counts[kind] for kind in KINDS]
        share = f"{sum(numbers):,} ({sum(numbers) / max(1, found.rows[split]):.1%})"
        print(f"  {split:<8}{numbers[0]:>10,}{numbers[1]:>12,}{numbers[2]:>8,}{share:>16}")
    print(f"near: {found.near}")
    for kind in KINDS:
        of_kind = [leak for leak in found.leaks if leak.kind == kind]
        # The least alike first: they show whether the threshold says what is meant.
        for leak in sorted(of_kind, key=lambda some: some.similarity)[:examples]:
            one, other = (found.ids[split][row] for split, row in _places(leak))
            alike = f", {leak.similarity:.2f} alike" if kind == "near" else ""
            print(f"\n{kind}: {leak.split} {clean(one)} and {leak.earlier_split} {clean(other)}{alike}")
            for split, row in _places(leak):
                print(f"  {cut(clean(found.shown[split][row]), TEXT_WIDTH)}")


def _places(leak: Leak) -> tuple[tuple[str, int], tuple[str, int]]:
    return (leak.split, leak.row), (leak.earlier_split, leak.earlier_row)


def leaks_of_source(recipe: Recipe, threshold: float | None) -> Found:
    """Leaks of the data that a recipe with a source reads.

    Raises:
        FinetuneError: as a run on it would.
    """
    settings = recipe.data
    if isinstance(settings, ImageData):
        return image_leaks(*load_images(settings, USUAL))
    scores = getattr(recipe.objective, "kind", None) == "regression"
    return text_leaks(load_data(settings, kind_of_rows(settings).roles, scores=scores), threshold or THRESHOLD)


def leaks_of_run(source: str, run: str, threshold: float | None) -> tuple[dict[str, Any], Found]:
    """A run's record, and the leaks of the data it saw, loaded again.

    Raises:
        ConfigError: no run, one on another source, or a threshold for images.
        DataError: the data have changed since.
    """
    record = read_record(Path(run))
    settings: DataSettings = recorded_recipe(record).recipe.data
    if settings.source != source and Path(settings.source).resolve() != Path(source).resolve():
        raise ConfigError(f"{run} was trained on {settings.source}, not on {source}.", f"Give {settings.source}.")
    if not isinstance(settings, ImageData):
        return record, text_leaks(run_data(record), threshold or THRESHOLD)
    if threshold is not None:
        raise ConfigError("--threshold is for texts, but these are images.", "Leave it out.")
    data, rows = load_images(settings, USUAL)
    if data.sha256 != record["data"]["sha256"]:
        raise DataError(
            f"{settings.source} has changed since the run: its images no longer have the recorded SHA-256.",
            "Put them back as they were.",
        )
    return record, image_leaks(data, rows)


def print_scores(run: str, record: Mapping[str, Any], found: Found, metric: str | None) -> None:
    """The run's test score on all rows, without the leaked ones, and on those alone.

    Raises:
        DataError: the run is not completed, or its predictions are not of these rows.
    """
    stored = read_predictions(Path(run), record)
    metric = metric or METRICS[stored.kind][0]
    leaked_ids = {found.ids["test"][leak.row] for leak in found.leaks if leak.split == "test"}
    if not set(stored.ids) <= set(found.ids["test"]):
        raise DataError(f"{run} predicted rows that are not among the test rows.", "The data or their card changed.")
    leaked = np.array([name in leaked_ids for name in stored.ids])
    parts = {"all test rows": np.arange(len(leaked)), "without leaked rows": np.flatnonzero(~leaked)}
    parts["leaked rows alone"] = np.flatnonzero(leaked)
    print(f"\n{title(metric)} of {clean(run)}, 95 % intervals in brackets")
    for name, rows in parts.items():
        if not len(rows):
            print(f"{pad(name, 22)}no rows")
            continue
        value: Interval = score(stored, rows, metric, record["seed"])
        few = "  few rows" if value.n < FEW_ROWS else ""
        print(f"{pad(name, 22)}{f'{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]':<24}{value.n:>8,} rows{few}")
    print("Leaked rows may be easier or harder than others for other reasons: the difference is no proof by itself.")

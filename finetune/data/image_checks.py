"""`finetune data check` for images: what a run would see of them, or refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.data.card import card_names, load_card
from finetune.data.image_loader import Resizing, load_images
from finetune.data.image_sources import has_images
from finetune.data.splits import SPLITS
from finetune.errors import DataError
from finetune.image_settings import ImageData

# What resnet_img with a usual model keeps, so that a run after the check decodes nothing again.
USUAL = Resizing(256, 3, 224)


def is_images(source: str) -> bool:
    """Whether a source is a folder of images, or the card of one."""
    if source in card_names() or source.endswith(".md"):
        return "image" in load_card(source).block.columns
    return Path(source).is_dir() and has_images(Path(source))


def check_images(settings: ImageData) -> tuple[str, int]:
    """The report as text, and the exit status: 0 when a run can train on the images, else 1.

    Raises:
        SourceError: the images can't be had.
        ConfigError: a setting contradicts the source.
    """
    try:
        data, rows = load_images(settings, USUAL)
    except DataError as error:
        return f"problem: {error}\nA run would refuse this data.", 1
    total = sum(map(len, rows.values()))
    lines = [
        f"{data.name}: {total:,} images ({', '.join(f'{split} {len(some):,}' for split, some in rows.items())})",
        f"sha256 {data.sha256}",
        "",
        f"{len(data.labels)} labels",
    ]
    width = max(5, *map(len, data.labels))
    lines.append(f"  {'label':<{width}}  {'train':>8} {'valid':>8} {'test':>8}   share")
    counts = {split: np.bincount(some.labels, minlength=len(data.labels)) for split, some in rows.items()}
    for index, label in enumerate(data.labels):
        numbers = [int(counts[split][index]) for split in SPLITS]
        lines.append(f"  {label:<{width}}  {' '.join(f'{n:>8,}' for n in numbers)}  {sum(numbers) / total:>6.1%}")
    lines += ["", *(f"note: {note}" for note in data.notes), "A run can train on this data."]
    return "\n".join(lines), 0

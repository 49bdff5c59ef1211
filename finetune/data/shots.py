"""A few training rows of each class, drawn by the seed: what few-shot tables are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from finetune.data.loader import LoadedData
from finetune.errors import DataError
from finetune.randomness import numpy_generator


def draw_shots(data: LoadedData, shots: int | None, seed: int) -> LoadedData:
    """The data with at most `shots` training rows of each class; a smaller class gives all it has, and a note says so.

    The draw is a function of (seed, class), so every method that is given the same seed learns from the same rows.
    Other splits stay whole.

    Args:
        shots: None leaves the data as they are.

    Raises:
        DataError: a class without any training row.
    """
    if shots is None:
        return data
    train = data.splits["train"]
    labels, chosen, short = np.asarray(train.with_format("numpy")["label"][:]), [], []
    for index, name in enumerate(data.labels):
        rows = np.flatnonzero(labels == index)
        if not len(rows):
            raise DataError(
                f"{data.name} has no training row of the class {name!r}.", "Leave the class out, or label a row of it."
            )
        if len(rows) < shots:
            short.append(f"{name} {len(rows)}")
        chosen.append(numpy_generator(seed, "shots", index).permutation(rows)[:shots])
    rows = np.sort(np.concatenate(chosen))
    notes = [f"train: {len(rows)} rows, {shots} of each class, drawn by the seed {seed} (data.shots)"]
    notes += [f"train: fewer than {shots} rows stand under {', '.join(short[:10])}"] if short else []
    return replace(data, splits={**data.splits, "train": train.select(rows)}, notes=(*data.notes, *notes))

"""`finetune slices`: the score of a finished run on parts of its test rows, each with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError
from finetune.evaluation.intervals import Interval, bootstrap, exact_share_interval, percentile_interval
from finetune.evaluation.stored import METRICS, Stored, read_predictions
from finetune.report.summary import clean, cut, pad, title
from finetune.run_data import run_data
from finetune.run_folder import read_record

PARTS = 4
MOST_VALUES = 12
FEW_ROWS = 30


def print_slices(run: str, by: str, metric: str | None) -> int:
    """Print the table of slices of a run.

    Raises:
        ConfigError, DataError: no such run, column or metric, or data that have changed since.
    """
    record = read_record(Path(run))
    stored = read_predictions(Path(run), record)
    metric = metric or METRICS[stored.kind][0]
    slices = sliced(stored, values_of_rows(stored, record, by), metric, record["seed"])
    whole = score(stored, np.arange(len(stored.ids)), metric, record["seed"])
    width = max(len("all rows"), *(len(cut(name, 40)) for name in slices)) + 2
    print(f"{clean(record['data']['card'])} test; {title(metric)} by {clean(by)}, 95 % intervals in brackets")
    for name, found in {"all rows": whole, **slices}.items():
        few = "  few rows" if found.n < FEW_ROWS else ""
        numbers = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        print(f"{pad(cut(clean(name), 40), width)}{numbers:<24}{found.n:>8,} rows{few}")
    print(
        f"\n{len(slices)} parts: about one interval in twenty misses its part's true score by chance alone, and the "
        "worst part looks worse than it is."
    )
    return 0


def values_of_rows(stored: Stored, record: dict[str, Any], by: str) -> list[str | float]:
    """What the rows are parted by, in the order of the predictions: words, class names, or a column's values."""
    if by == "class":
        if stored.kind != "classes":
            raise DataError("--by class needs a classifier's run.", "Take --by length or a column of the data.")
        return [stored.names[int(label)] for label in stored.labels]
    column = None if by == "length" else by
    test = run_data(record, {"slice": column} if column else None).splits["test"]
    if column:
        found = dict(zip(map(str, test["id"]), test["slice"], strict=True))
    else:
        # Columns of texts, in whatever number a task has them.
        texts = [test[name] for name in test.column_names if name != "id" and isinstance(test[0][name], str)]
        if not texts:
            raise DataError("--by length needs a text.", "Take --by class or a column of the data.")
        lengths = [float(sum(len(text.split()) for text in row)) for row in zip(*texts, strict=True)]
        found = dict(zip(map(str, test["id"]), lengths, strict=True))
    if any(name not in found for name in stored.ids):
        raise DataError("Some predicted rows are not among the data's test rows.", "The data or their card changed.")
    return [found[name] for name in stored.ids]


def sliced(stored: Stored, values: Sequence[str | float], metric: str, seed: int) -> dict[str, Interval]:
    """The metric of each part: of each value, or of each of four parts when there are more than 12 numbers."""
    numbers = _numbers(values)
    if numbers is not None and len(set(values)) > MOST_VALUES:
        edges = np.unique(np.quantile(numbers, np.arange(1, PARTS) / PARTS, method="lower"))
        part = np.searchsorted(edges, numbers)  # an edge belongs to the part that it ends
        rows = {}
        for index in np.unique(part):
            inside = np.flatnonzero(part == index)
            low, high = numbers[inside].min(), numbers[inside].max()
            rows[f"{low:g} to {high:g}" if high > low else f"{low:g}"] = inside
    else:
        names = sorted(set(values), key=lambda value: (numbers is None and str(value), numbers is None or float(value)))
        rows = {str(name): np.array([at for at, value in enumerate(values) if value == name]) for name in names}
    return {name: score(stored, inside, metric, seed) for name, inside in rows.items()}


def score(stored: Stored, inside: np.ndarray, metric: str, seed: int) -> Interval:
    """The metric of some rows, by index, with a bootstrap interval over them."""
    part = Stored(
        stored.kind,
        tuple(stored.ids[int(at)] for at in inside),
        stored.labels[inside],
        stored.predictions[inside],
        stored.names,
    )
    value, statistic = part.value(metric), part.statistic(metric)
    right = part.row_scores()
    if metric == "accuracy" and (right.all() or not right.any()):
        low, high = exact_share_interval(int(right.sum()), len(inside))
    else:
        low, high = percentile_interval(bootstrap(lambda of: {"it": statistic(of)}, len(inside), seed)["it"])
    return Interval(value, low, high, len(inside))


def _numbers(values: Sequence[str | float]) -> np.ndarray | None:
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None

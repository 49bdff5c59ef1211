"""`finetune compare`: which of some finished runs is better on the same test rows, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError, FinetuneError
from finetune.evaluation.intervals import RESAMPLES
from finetune.evaluation.multiple import Comparison, compare_all
from finetune.evaluation.stored import METRICS, Stored, joined, read_predictions
from finetune.report.summary import SHARES, clean, cut, difference, p_text, pad, title
from finetune.run_data import run_data
from finetune.run_folder import read_record

TEXT_WIDTH = 76


def compare(folders: Sequence[str], metric: str | None, examples: int, seed: int) -> int:
    """Print all pairs of runs, tested and corrected, and rows that they answer differently.

    Raises:
        ConfigError, DataError: a run that is none, is not completed, or saw other data.
    """
    records = [read_record(Path(folder)) for folder in folders]
    names = [clean(folder.rstrip("/")) for folder in folders]
    runs = _same_rows(folders, records)
    metric = metric or METRICS[runs[0].kind][0]
    pairs = compare_all([[run] for run in runs], metric, seed)
    print(f"{len(runs[0].ids):,} test rows of {clean(records[0]['data']['card'])}; {title(metric)}")
    for number, (name, run) in enumerate(zip(names, runs, strict=True), start=1):
        print(f"  {number}  {pad(cut(name, 56), 58)}{run.value(metric):.4f}")
    print(f"\n{pad('pair', 12)}{pad('difference, 95 % interval', 34)}{pad('p', 10)}{pad('p, Holm', 10)}so the first is")
    for pair in pairs:
        print(_pair_line(pair, metric))
    single = "McNemar's exact test" if metric == "accuracy" else "the bootstrap"
    unit = "; in points" if metric in SHARES else ""
    print(
        f"\nPaired bootstrap over rows ({RESAMPLES:,} resamples){unit}; p of {single}; Holm over "
        f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}.\n"
        "One training run each: another seed may differ by more than another sample of rows."
    )
    for pair in pairs:
        _disagreement(pair, runs, records[0], examples)
    return 0


def _same_rows(folders: Sequence[str], records: Sequence[dict[str, Any]]) -> list[Stored]:
    """The runs' predictions with rows in one order."""
    first = records[0]["data"]["sha256"]
    for folder, record in zip(folders, records, strict=True):
        # Runs on fewer training rows have another hash by right; their test rows are compared one by one below.
        fewer = {some["config"]["data"].get("max_train_rows") for some in (records[0], record)}
        if record["data"]["sha256"] != first and len(fewer) == 1:
            raise DataError(
                f"{folders[0]} and {folder} saw different data: SHA-256 {first[:12]} and "
                f"{record['data']['sha256'][:12]}.",
                "A difference between them could be the data's. Run one of them again on the data of the other.",
            )
    runs = [read_predictions(Path(folder), record) for folder, record in zip(folders, records, strict=True)]
    others = [joined(runs[0], run, (folders[0], name)) for name, run in zip(folders[1:], runs[1:], strict=True)]
    return [runs[0], *others]


def _pair_line(pair: Comparison, metric: str) -> str:
    value, low, high = (difference(metric, some) for some in (pair.value, pair.low, pair.high))
    cells = pad(f"{pair.a + 1} - {pair.b + 1}", 12) + pad(f"{value} [{low}, {high}]", 34)
    return cells + pad(p_text(pair.p), 10) + pad(p_text(pair.p_holm), 10) + pair.verdict


def _disagreement(pair: Comparison, runs: Sequence[Stored], record: dict[str, Any], examples: int) -> None:
    """How often only one is right (or nearer), and the first rows of each kind."""
    a, b = runs[pair.a], runs[pair.b]
    gap = a.row_scores() - b.row_scores()
    word = "right" if a.kind == "classes" else "nearer"
    print(
        f"\n{pair.a + 1} and {pair.b + 1}: only {pair.a + 1} is {word} on {int((gap > 0).sum()):,} rows, only "
        f"{pair.b + 1} on {int((gap < 0).sum()):,}; the same on {int((gap == 0).sum()):,}"
    )
    texts = _texts(record) if examples else {}
    for sign, better in ((1, pair.a), (-1, pair.b)):
        order = np.argsort(-sign * gap, kind="stable")
        for row in [int(some) for some in order[:examples] if sign * gap[some] > 0]:
            print(f"  only {better + 1}: row {clean(a.ids[row])}{_answers(a, b, row)}")
            if a.ids[row] in texts:
                print(f"          {cut(clean(texts[a.ids[row]]), TEXT_WIDTH)}")


def _answers(a: Stored, b: Stored, row: int) -> str:
    if a.kind == "classes":
        label, one, other = (clean(a.names[int(some[row])]) for some in (a.labels, a.predictions, b.predictions))
        return f", {label}: {one} against {other}"
    if a.kind == "numbers":
        return f", {a.labels[row]:.3g}: {a.predictions[row]:.3g} against {b.predictions[row]:.3g}"
    one, other = (some.predictions[row] / some.labels[row, 0] for some in (a, b))
    return f": {one:.3f} against {other:.3f} nats a token"


def _texts(record: dict[str, Any]) -> dict[str, str]:
    """Texts of the test rows by id; empty, and said so, where the data can't be read any more."""
    try:
        test = run_data(record).splits["test"]
    except FinetuneError as error:
        print(f"  (no texts: {error.problem})")
        return {}
    return dict(zip(map(str, test["id"]), test["text"], strict=True)) if "text" in test.column_names else {}

"""The Markdown tables of a model card: scores beside the baselines', gains, classes, samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.report.summary import (
    PERCENT,
    SHARES,
    clean,
    difference,
    gain_unit,
    p_text,
    reported_split,
    title,
    unit,
    verdict,
)


def result_tables(record: Mapping[str, Any]) -> list[str]:
    """Scores beside the baselines', gains, classes, and what to know of them, as Markdown blocks."""
    split = reported_split(record)
    if split is None:
        return ["There are none: the run ended before it was evaluated."]
    metrics, baselines, gains = record["metrics"][split], part(record, "baselines"), part(record, "gains")
    tables = []
    for some in _columns(list(metrics), 4):
        rows = [["", *(title(metric) for metric in some)]]
        for name, scores in {"fine-tuned": metrics, **baselines}.items():
            rows.append([markdown(name), *(_score(scores.get(metric)) for metric in some)])
        tables.append(_table(rows))
    if gains:
        test = next(iter(gains.values())).get("test", "McNemar, exact")
        rows = [["fine-tuned against", "metric", "gain", "95 % interval", f"p ({test})", "so it is"]]
        for name, gain in gains.items():
            value, low, high = (difference(gain["metric"], gain[key]) for key in ("value", "low", "high"))
            rows.append(
                [
                    markdown(name),
                    _metric_of_gain(gain["metric"]),
                    value,
                    f"{low} to {high}",
                    p_text(gain["p"]),
                    verdict(gain),
                ]
            )
        tables.append(f"Paired over the same {unit(record)}; shares in points:\n\n" + _table(rows))
    classes = part(record, "per_class").get(split) or []
    if classes:
        rows = [["class", "precision", "recall", "F1", "rows"]]
        rows += [
            [
                markdown(row["label"]),
                *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")),
                f"{row['support']:,}",
            ]
            for row in classes
        ]
        tables.append(_table(rows))
    notes = [f"- {markdown(name)}: {markdown(note)}" for name, note in part(record, "baseline_notes").items() if note]
    if notes:
        tables.append("\n".join(notes))
    macro = " Macro scores average over the classes that occur." if "macro_f1" in metrics else ""
    tables.append(
        f"Split: {split}. Intervals are bootstraps over {unit(record)} (2,000 resamples); they say nothing of another "
        f"training seed.{macro}"
    )
    return tables


def quoted_samples(record: Mapping[str, Any]) -> list[str]:
    """What the model wrote after each prompt before and after training, as quotations."""
    return [
        "\n>\n".join(
            f"> **{name}**: {markdown(sample['prompt'])}**|** {markdown(sample[name])}"
            for name in ("before", "after", "expected")
            if name in sample
        )
        for sample in record.get("samples") or []
    ]


def markdown(text: object) -> str:
    """Text that shows as it is inside a Markdown line or table cell, whatever a label or file name holds."""
    return re.sub(r"([\\`*\[\]<>|$]|\b_|_\b|~(?=~)|^[#+-])", r"\\\1", clean(text))


def part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of the record; empty when it lacks it."""
    return record.get(key) or {}


def said_in(metric: str) -> str:
    """What follows the numbers of a gain in a sentence."""
    return "points, " if metric in SHARES else f"{PERCENT[metric]}, " if metric in PERCENT else ""


def _metric_of_gain(metric: str) -> str:
    return gain_unit(metric) if metric in PERCENT else title(metric)


def _columns(names: Sequence[str], width: int) -> list[Sequence[str]]:
    return [names[start : start + width] for start in range(0, len(names), width)]


def _score(score: Mapping[str, Any] | None) -> str:
    return "–" if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])

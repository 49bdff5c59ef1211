"""The plain-text table that a run prints at its end: what was reached, and what fine-tuning bought."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
MAX_CLASSES = 20
NAME_WIDTH = 30
LABEL_WIDTH = 40

# Metrics of which all or some are shown side by side, in this order; a task with others shows its first ones.
SHOWN_METRICS = (
    "accuracy", "f1", "precision", "recall", "macro_f1", "mcc", "pearson", "spearman", "mae", "perplexity",
    "bits_per_byte", "masked_perplexity", "masked_accuracy",
)  # fmt: skip
METRIC_TITLES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "mcc": "Matthews correlation",
    "ece": "calibration error",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "squared error",
    "mae": "absolute error",
    "bits_per_byte": "bits per byte",
    "masked_perplexity": "masked perplexity",
    "masked_loss": "masked loss (nats)",
    "loss": "loss (nats a token)",
}
# Differences of these are said in points (hundredths).
SHARES = frozenset(
    {"accuracy", "f1", "precision", "recall", "macro_f1", "weighted_f1", "macro_precision", "macro_recall"}
    | {"masked_accuracy"}
)
# A share of the baseline's own value, said in per cent.
PERCENT = {
    "perplexity_reduction": "% lower perplexity",
    "masked_perplexity_reduction": "% lower masked perplexity",
}
LOWER_IS_BETTER = frozenset(
    {"ece", "perplexity", "bits_per_byte", "loss", "mse", "mae", "masked_perplexity", "masked_loss"}
)
UNITS = {"text-generation": "documents", "fill-mask": "documents", "token-classification": "sentences"}
SAMPLE_LINES = 3
MAX_SAMPLES = 3


def summary_table(record: Mapping[str, Any]) -> str:
    """The results of a run record (run.json's dict) as lines of at most 100 columns, without a final newline.

    The fine-tuned model above the baselines with 95 % intervals, the paired gain over each baseline, and the scores of
    each class where there are at most 20. Parts that the record lacks are left out.
    """
    split = reported_split(record)
    if split is None:
        return f"No results: the run's status is {record.get('status', 'unknown')}."
    metrics = record["metrics"][split]
    data = record.get("data") or {}
    rows = next(iter(metrics.values()))["n"]
    source = clean(data.get("card") or (record.get("config") or {}).get("data", {}).get("source") or "data")
    blocks = [_scores(f"{cut(source, 44)} {split}, {rows:,} {unit(record)}", metrics, record.get("baselines") or {})]
    if record.get("gains"):
        blocks.append(_gains(record["gains"]))
    classes = (record.get("per_class") or {}).get(split) or []
    if 0 < len(classes) <= MAX_CLASSES:
        blocks.append(_classes(classes))
    elif classes:
        blocks.append(f"{len(classes)} classes: run.json holds the scores of each.")
    samples = record.get("samples") or []
    blocks += [_sample(sample) for sample in samples[:MAX_SAMPLES]]
    if len(samples) > MAX_SAMPLES:
        blocks.append(f"README.md shows {len(samples) - MAX_SAMPLES} more.")
    if answers := record.get("answers"):
        blocks.append(answers_line(answers))
    return "\n\n".join(blocks)


def reported_split(record: Mapping[str, Any]) -> str | None:
    """The split whose results are shown: test, else valid, else the first that has any; none for a run without."""
    splits = {name: metrics for name, metrics in (record.get("metrics") or {}).items() if metrics}
    for name in ("test", "valid", *splits):
        if name in splits:
            return name
    return None


def shown_metrics(metrics: Mapping[str, Any], most: int = 3) -> list[str]:
    """Names of the metrics that are shown side by side, the main one first."""
    return ([name for name in SHOWN_METRICS if name in metrics] or list(metrics))[:most]


def unit(record: Mapping[str, Any]) -> str:
    """What a score's n counts."""
    return UNITS.get(str(record.get("task")), "rows")


def gain_unit(metric: str) -> str:
    """What a gain's numbers are: "points of accuracy", "% lower perplexity", or the metric's own name."""
    return PERCENT.get(metric, f"{'points of ' if metric in SHARES else ''}{title(metric)}")


def title(metric: str) -> str:
    """A metric's name as a reader would write it."""
    return METRIC_TITLES.get(metric, metric.replace("_", " "))


def verdict(gain: Mapping[str, Any]) -> str:
    """What the interval of a gain allows to say."""
    if gain["low"] > 0:
        return "better"
    return "worse" if gain["high"] < 0 else "not distinguishable"


def difference(metric: str, value: float) -> str:
    """A signed difference: in points for shares, in per cent for reductions, else in the metric's own unit."""
    return f"{100 * value:+.1f}" if metric in SHARES or metric in PERCENT else f"{value:+.3f}"


def p_text(p: float) -> str:
    """A p-value with as many digits as anybody reads."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _scores(heading: str, metrics: Mapping[str, Any], baselines: Mapping[str, Any]) -> str:
    shown = shown_metrics(metrics)
    lines = [f"{heading}; 95 % intervals in brackets"]
    lines.append((" " * NAME_WIDTH + "".join(pad(cut(title(name), 21), 23) for name in shown)).rstrip())
    for name, scores in {"fine-tuned": metrics, **baselines}.items():
        cells = (_score(scores.get(metric)) for metric in shown)
        lines.append(
            (pad(cut(clean(name), NAME_WIDTH - 2), NAME_WIDTH) + "".join(pad(cell, 23) for cell in cells)).rstrip()
        )
    return "\n".join(lines)


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    # Unbounded metrics (a perplexity of 1234.5) keep the column's width by having fewer decimals.
    digits = 3 if max(abs(score["value"]), abs(score["low"]), abs(score["high"])) < 10 else 1
    return f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def _gains(gains: Mapping[str, Any]) -> str:
    metric = next(iter(gains.values()))["metric"]
    lines = [pad("fine-tuned against", NAME_WIDTH) + pad(gain_unit(metric), 31) + pad("p", 10) + "so it is"]
    for name, gain in gains.items():
        low, high = difference(gain["metric"], gain["low"]), difference(gain["metric"], gain["high"])
        cells = pad(f"{difference(gain['metric'], gain['value'])} [{low}, {high}]", 31) + pad(p_text(gain["p"]), 10)
        lines.append(pad(cut(clean(name), NAME_WIDTH - 2), NAME_WIDTH) + cells + verdict(gain))
    return "\n".join(lines)


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    width = max(len("class"), *(text_width(cut(clean(row["label"]), LABEL_WIDTH)) for row in classes)) + 2
    lines = [pad("class", width) + f"{'precision':>9}  {'recall':>6}  {'F1':>6}  {'rows':>8}"]
    for row in classes:
        scores = f"{row['precision']:>9.3f}  {row['recall']:>6.3f}  {row['f1']:>6.3f}  {row['support']:>8,}"
        lines.append(pad(cut(clean(row["label"]), LABEL_WIDTH), width) + scores)
    return "\n".join(lines)


def answers_line(answers: Mapping[str, Any]) -> str:
    """How many answers to held-out prompts ended by themselves, before and after."""
    return (
        f"Answers that ended by themselves: {answers['ended_before']} of {answers['count']} before, "
        f"{answers['ended_after']} of {answers['count']} after."
    )


def _sample(sample: Mapping[str, Any]) -> str:
    lines = [cut(f"prompt  {clean(sample['prompt'])}", WIDTH)]
    said = {"before": sample["before"], "after": sample["after"]}
    if "expected" in sample:
        said["data"] = sample["expected"]
    for name, text in said.items():
        wrapped = textwrap.wrap(clean(text), WIDTH - 8, max_lines=SAMPLE_LINES, placeholder=" …")
        lines += [cut(f"{name if not number else '':<8}{line}", WIDTH) for number, line in enumerate(wrapped or [""])]
    return "\n".join(line.rstrip() for line in lines)


def clean(text: object) -> str:
    """One printable line: a label with a line break or an escape sequence can't disturb a table."""
    return "".join(char if char.isprintable() else " " for char in str(text)).strip() or "''"


def text_width(text: str) -> int:
    """Columns that a terminal needs; Chinese, Japanese and Korean characters take two."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def pad(text: str, width: int) -> str:
    """Spaces on the right up to `width` columns."""
    return text + " " * max(0, width - text_width(text))


def cut(text: str, width: int) -> str:
    """At most `width` columns, with a mark where something was cut off."""
    if text_width(text) <= width:
        return text
    while text_width(text) > width - 1:
        text = text[:-1]
    return text + "…"

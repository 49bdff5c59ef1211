"""Writes a data card for a user's own data, with measured numbers and prose that claims nothing it doesn't know."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import yaml

from finetune.config import DataSettings
from finetune.data.cache import whole_file
from finetune.data.card import CardBlock, card_names, load_card
from finetune.data.checks import Measured, measure
from finetune.data.personal import redactions
from finetune.data.plan import DataPlan, make_plan
from finetune.data.problems import Problems
from finetune.data.staging import stage
from finetune.errors import DataError
from finetune.files import sha256_file

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


class _Flow(dict[str, int]):
    """A mapping that YAML writes on one line, so that 52 labels are 52 lines."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Flow, lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True)
)


def draft_card(settings: DataSettings, roles: Mapping[str, str | None], out: Path, licence: str, language: str) -> str:
    """The text of a card that loads the same rows as `settings` do, when it is saved as `out`.

    Raises:
        DataError: the data can't be loaded, or lies in shards that a card can't name one by one.
    """
    if settings.source in card_names() or settings.source.endswith(".md"):
        raise DataError(
            f"{settings.source} has a card already: {load_card(settings.source).path}.",
            "Copy that file and change what differs.",
        )
    plan = make_plan(settings, roles)
    with tempfile.TemporaryDirectory(prefix="finetune-card-") as folder:
        staged = stage(plan, Path(folder), Problems(strict=True))
        splits = {split: datasets.Dataset.from_file(str(path)) for split, path in staged.files.items()}
        measured = measure(splits, staged.labels)
        del splits  # unmapped before the folder goes
    task = "text-classification" if staged.labels else "text-generation"
    block: dict[str, Any] = {
        "task": task,
        "source": _source(plan, settings, out),
        "columns": staged.columns,
        "labels": list(staged.labels),
        "splits": {"salt": plan.salt, "valid_share": plan.valid_share, "test_share": plan.test_share},
        **numbers(measured, staged.dropped),
    }
    if staged.class_names:
        block["label_rule"] = {"map": {str(index): name for index, name in enumerate(staged.class_names)}}
    CardBlock.model_validate(yaml.load(yaml.dump(block, Dumper=_Dumper), Loader=yaml.SafeLoader))
    total = sum(measured.rows.values())
    matter = {
        "license": licence,
        "language": [language],
        "pretty_name": plan.name,
        "task_categories": [task],
        "size_categories": [next((size for most, size in _SIZES if total < most), "n>1M")],
        "finetune": block,
    }
    front = yaml.dump(matter, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return f"---\n{front}---\n{_prose(plan, measured, licence)}"


def write_card(text: str, out: Path) -> None:
    """Save a card under a name that is free; whole or not at all.

    Raises:
        DataError: the file exists, its name doesn't end in .md, or its folder can't be written.
    """
    if out.suffix != ".md":
        raise DataError(f"{out} is no name for a card.", "Let it end in .md, for example --out data_cards/reviews.md")
    if out.exists():
        raise DataError(f"{out} exists already.", "Give another --out, or take the file away first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as file:
            file.write(text.encode())
    except OSError as error:
        raise DataError(f"{out} can't be written: {error.strerror}.", "Give another --out.") from None


def numbers(measured: Measured, dropped: int) -> dict[str, Any]:
    """The measured part of a card's block."""
    return {
        "rows": _Flow(measured.rows),
        "dropped": dropped,
        "label_counts": {label: _Flow(counts) for label, counts in measured.label_counts.items()},
        "duplicates": _Flow(measured.duplicates.model_dump()),
        "leaks": _Flow(measured.leaks),
    }


def _source(plan: DataPlan, settings: DataSettings, out: Path) -> dict[str, Any]:
    if not Path(settings.source).expanduser().exists():
        source: dict[str, Any] = {"hub": settings.source}
        return source | ({"revision": settings.revision} if settings.revision else {})
    splits = [split for split, _ in plan.files]
    if len(set(splits)) < len(splits):
        raise DataError(
            f"{settings.source} has several files for one split, and a card names one.", "Join them into one file."
        )
    files = {split: path.resolve() for split, path in plan.files}
    root = Path(os.path.commonpath([path.parent for path in files.values()]))
    return {
        "path": Path(os.path.relpath(root, out.resolve().parent)).as_posix(),
        "files": {split: path.relative_to(root).as_posix() for split, path in files.items()},
        "file_hashes": {path.name: sha256_file(path) for path in files.values()},
    }


def _prose(plan: DataPlan, measured: Measured, licence: str) -> str:
    files = ", ".join(f"`{path.name}`" for _, path in plan.files)
    terms = (
        "Its terms of use are not known to this card: find them out before you share the data or a model trained on it."
        if licence == "unknown"
        else f"Its licence is stated above ({licence})."
    )
    published = any(split != "all" for split, _ in plan.files)
    how = (
        "The splits are those of the files; what they lack was made from the training rows by a hash of the text."
        if published
        else "Rows go to splits by a hash of their normalised text, so duplicates stand together and rows that are "
        "added later move no other."
    )
    if plan.passages:
        how = "Rows are passages of running text, and splits are whole stretches of it: train, then valid, then test."
    total, classes = sum(measured.rows.values()), len(measured.label_counts)
    use = f"Text classification into {classes} classes" if classes else "Language modelling"
    personal = redactions(plan.files) or ("Nobody has taken personal data out of it by `finetune data check --redact`",)
    who, does = ("who labelled them, ", "repeats these labels on") if classes else ("", "goes on with")
    return f"""# {plan.name}

## Where it is from
Read from {files} on the machine where this card was written; the hashes above say whether another copy is the same.
{terms}

## What it is for
{use}, {total:,} rows.
{how}

## What not to use it for
Nobody has described here who wrote these texts, {who}and whom they speak for. Until that is known, a
score on this data says how well a model {does} texts like these, and nothing about other texts.

## Measured
{measured.duplicates.normalised:,} rows repeat an earlier text (after normalising),
{measured.duplicates.conflicting:,} rows have a text that also stands under another label, and
{measured.leaks["test"]:,} test rows have the text of a row in train or valid.

## Personal data
{" ".join(f"{line}." for line in personal)}
"""

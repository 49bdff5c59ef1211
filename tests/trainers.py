"""Trainers on real weights and real rows, made as the launch line makes them, for tests."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

from accelerate import Accelerator

from finetune.checkpoint import Checkpoints
from finetune.config import TextClassificationData
from finetune.data.loader import load_data
from finetune.experiment import build_trainer
from finetune.history import History
from finetune.recipe import load_recipe, override
from finetune.trainer import Trainer

# Small and exact: the real MiniLM, real reviews, fp32, no dropout.
EXACT = (
    "train.precision=fp32",
    "model.dropout=0",
    "data.max_tokens=32",
    "train.batch_size=8",
    "train.threads=1",
    "objective.baselines=false",
)


def write_reviews(path: Path, rows: int = 200, evenly: bool = True) -> Path:
    """A CSV of real rows of movie_snippets: enough to train on, few enough to evaluate in a second.

    Args:
        evenly: from the whole file, which begins with thousands of positive rows; else its first rows.
    """
    texts, names = _snippets()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        every = len(texts) // rows if evenly else 1
        writer.writerows(zip(texts[: every * rows : every], names[: every * rows : every], strict=True))
    return path


@functools.cache
def _snippets() -> tuple[list[str], list[str]]:
    """Texts and label names of movie_snippets' training rows."""
    data = load_data(TextClassificationData(source="movie_snippets"), {"text": None, "label": None})
    train = data.splits["train"]
    return list(train["text"]), [data.labels[label] for label in train["label"]]


def make_trainer(folder: Path, *overrides: str, recipe: str = "bert_cls") -> Trainer:
    """A trainer whose run folder is `folder`, on 200 real rows, with EXACT and then the overrides applied."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_recipe(recipe)
    override(loaded, [*EXACT, f"data.source={write_reviews(folder / 'reviews.csv', evenly=False)}", *overrides])
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    trainer = build_trainer(loaded, loaded.build(), accelerator)
    trainer.checkpoints = Checkpoints(folder / "checkpoints", loaded.recipe.train.keep_checkpoints, print)
    trainer.history = History(folder / "history.jsonl")
    return trainer

"""From a thousand rows to a million: what reading, tokenising and 50 updates take, and how much memory."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune.bench.speed.starting import keeping_bytecode
from finetune.errors import TrainingError

SIZES = (1_000, 10_000, 100_000, 1_000_000)
UPDATES = 50
JUDGED_ROWS = 200


def figures(rows: int) -> dict[str, float]:
    """Seconds and MiB at the peak of a run on so many rows, the first time and when everything is in the cache.

    Loading is everything before the first update: reading, checking, tokenising, the model.

    Raises:
        TrainingError: a run failed.
    """
    from finetune.data.sources import resolve_model
    from finetune.recipe import load_recipe

    model = resolve_model(load_recipe("bert_cls").recipe.model.name, None).path
    with tempfile.TemporaryDirectory(prefix="finetune-speed-") as temporary:
        folder = Path(temporary)
        write_rows(rows, folder / "data")
        settings = (f"model.name={model}", "objective.baselines=false", "data.max_tokens=64", "train.batch_size=16",
                    f"train.max_updates={UPDATES}", "train.eval_every_updates=1000000")  # fmt: skip
        found: dict[str, float] = {"rows": rows, "updates": UPDATES}
        for time in ("first", "again"):
            record = _run(folder, folder / time, settings)
            timing = record["timing"]
            found |= {f"{time}_load_s": timing["load_s"], f"{time}_train_s": timing["train_s"]}
            found[f"{time}_peak_mb"] = record["peak_rss_mb"]
    return found


def write_rows(rows: int, folder: Path) -> None:
    """Real snippets over and over, each with a number after it, so that no two are alike; few of them to judge."""
    from finetune.data.loader import load_data
    from finetune.recipe import load_recipe

    data = load_data(load_recipe("bert_cls").recipe.data, {"text": None, "label": None})
    split = data.splits["train"]
    known = list(zip(split["text"][:], (data.labels[label] for label in split["label"][:]), strict=True))
    folder.mkdir()
    numbers = itertools.count()
    for name, most in (("train", rows), ("valid", JUDGED_ROWS), ("test", JUDGED_ROWS)):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for (text, label), number in zip(itertools.cycle(known), itertools.islice(numbers, most)):
                writer.writerow((f"{text} {number}", label))


def _run(folder: Path, output: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    call = [sys.executable, "-c", "from finetune.cli import console; console()", "run", "bert_cls"]
    call += ["--data", str(folder / "data"), "--output", str(output)]
    call += [part for setting in settings for part in ("--set", setting)]
    environment = keeping_bytecode() | {"FINETUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise TrainingError(f"{' '.join(call[3:])} ended with status {done.returncode}:\n{done.stderr[-1500:]}")
    record: dict[str, Any] = json.loads((output / "run.json").read_text("utf-8"))
    return record

"""`finetune bench` from a CSV to a checked table, `compare` and `replay`, as commands over real models and data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.forks import forks

pytestmark = pytest.mark.integration

TABLE = """
title = "Short"
seeds = [0]
[[rows]]
name = "TF-IDF"
recipe = "bert_cls"
method = "tfidf"
[[rows]]
name = "full"
recipe = "bert_cls"
set = ["train.max_updates=2"]
[[columns]]
name = "spam"
data = "sms_spam"
set = ["data.max_train_rows=64", "data.max_tokens=16", "data.test_share=0.05", "data.valid_share=0.05"]
"""
CLOCK = ("train_s", "wall_s", "peak_rss_mb")


def finetune(folder: Path, *arguments: str, status: int = 0) -> str:
    done = forks().run(arguments, folder, os.environ)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = {path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    return {name: {k: v for k, v in record.items() if k not in CLOCK} for name, record in found.items()}


def test_two_workers_share_a_table_and_a_lost_record_alone_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(TABLE, "utf-8")
    assert "2 runs done here" in finetune(tmp_path, "bench", "run", "short.toml", "--workers", "2")
    made = tmp_path / "results" / "short"
    before, times = records(made), {path.name: path.stat().st_mtime_ns for path in made.glob("*.json")}
    (lost,) = (name for name in before if name.startswith("tf_idf"))
    (made / lost).unlink()
    assert "1 runs done here" in finetune(tmp_path, "bench", "run", "short.toml")
    assert records(made) == before
    assert {path.name for path in made.glob("*.json") if path.stat().st_mtime_ns == times[path.name]} == {
        name for name in before if name != lost
    }
    assert not [path for path in made.glob("*.json") if str(tmp_path) in path.read_text("utf-8")]
    text = finetune(tmp_path, "bench", "show", "short.toml")
    assert "full" in text
    assert "not run" not in text
    finetune(tmp_path, "bench", "check", "short.toml")
    document = tmp_path / "results" / "short.md"
    document.write_text(document.read_text("utf-8").replace(", n = 1", ", n = 2", 1), "utf-8")
    assert "short.md, line" in finetune(tmp_path, "bench", "check", "short.toml", status=1)


def test_a_run_is_replayed_to_the_bit_and_compared_with_itself(tmp_path: Path) -> None:
    settings = ("data.max_train_rows=64", "data.max_tokens=16", "data.test_share=0.05", "train.max_updates=2")
    flags = ("--data", "sms_spam", *(word for setting in settings for word in ("--set", setting)))
    more = ("--set", "objective.baselines=false", "--output", "one")
    finetune(tmp_path, "run", "bert_cls", *flags, *more)
    assert "No difference" in finetune(tmp_path, "replay", "one", "--output", "two")
    assert "not distinguishable" in finetune(tmp_path, "compare", "one", "two")
    assert "270 rows" in finetune(tmp_path, "slices", "one", "--by", "length")

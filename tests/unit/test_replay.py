"""Replays: a record's settings come back whole as flags, and the first difference of two runs is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.recipe import load_recipe, override
from finetune.recipe_files import recipe_names
from finetune.replay import circumstances, first_difference, settings_flags

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", recipe_names())
def test_the_flags_of_a_record_give_all_its_settings(name: str) -> None:
    loaded, again = load_recipe(name), load_recipe(name)
    override(loaded, ["train.clip_grad_norm=none", "train.trackers=a,b", "data.max_train_rows=7", "train.seed=3"])
    flags = settings_flags(loaded, None)
    assert flags[0] == "--adapter"
    override(again, [f"adapter={flags[1]}", *flags[3::2]])
    assert again.resolved() == loaded.resolved()


def test_the_threads_are_those_of_the_run() -> None:
    assert "train.threads=2" in settings_flags(load_recipe("bert_cls"), 2)


def run(folder: Path, **changes: Any) -> Path:
    (folder / "model").mkdir(parents=True)
    record: dict[str, Any] = {
        "status": "completed", "task": "t", "recipe": {"name": "r", "origin": "packaged", "hash": "h"}, "config": {},
        "data": {"labels": [], "sha256": "d"}, "model": {"sha256": "m"}, "precision": "fp32",
        "versions": {"torch": changes.get("torch", "1")},
        "metrics": {"test": {"accuracy": {"value": changes.get("accuracy", 0.5)}}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"update": 1, "loss": 1.0}, {"update": 2, "loss": changes.get("loss", 0.5)}]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "predictions.parquet").write_bytes(changes.get("predictions", b"p"))
    (folder / "model" / "model.safetensors").write_bytes(changes.get("weights", b"w"))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"weights": b"x"}, "model/model.safetensors"),
        ({"weights": b"x", "predictions": b"q"}, "predictions.parquet"),
        ({"predictions": b"q", "accuracy": 0.6}, "run.json, metrics.test.accuracy.value: 0.5, replayed 0.6"),
        ({"accuracy": 0.6, "loss": 0.25}, "history.jsonl, line 2, loss: 0.5, replayed 0.25"),
    ],
)
def test_the_first_difference_is_the_earliest(tmp_path: Path, changes: dict[str, Any], said: str | None) -> None:
    assert first_difference(run(tmp_path / "a"), run(tmp_path / "b", **changes)) == said


def test_what_was_not_the_same_beforehand_is_listed(tmp_path: Path) -> None:
    records = [json.loads((run(tmp_path / name, torch=name) / "run.json").read_text()) for name in ("a", "b")]
    assert circumstances(*records) == ["torch was a, is now b"]

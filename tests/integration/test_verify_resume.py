"""`finetune verify resume`: exact on the real thing; and it tells when a resumed run is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finetune.verify import differences
from tests.integration.test_launch_line import finetune
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration

SMALL = ("--set", "data.max_tokens=16", "--set", "train.batch_size=8", "--set", "train.precision=fp32")


def test_a_killed_and_resumed_run_is_exact(tmp_path: Path) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv", rows=160)
    done = finetune("verify", "resume", "bert_cls", "--data", reviews, "--adapter", "frozen", "--updates", 4, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed at updates [1, 2] and resumed" in done.stdout
    assert "Exact" in done.stdout


def test_what_can_not_be_verified_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = finetune("verify", "resume", "bert_cls", "--updates", 2)
    assert done.returncode == 2
    assert "--updates 2 is too few" in done.stderr


def test_differences_are_named(tmp_path: Path) -> None:
    for run, hashes in (("one", "0"), ("two", "1")):
        (tmp_path / run / "model").mkdir(parents=True)
        (tmp_path / run / "model" / "model.safetensors").write_text(run)
        (tmp_path / run / "history.jsonl").write_text("the same")
        (tmp_path / run / "checkpoints" / "update_00000003").mkdir(parents=True)
        manifest = tmp_path / run / "checkpoints" / "update_00000003" / "manifest.json"
        manifest.write_text('{"sha256": {"model.safetensors": "HASH", "state.json": "HASH"}}'.replace("HASH", hashes))
    (tmp_path / "one" / "predictions.parquet").write_text("")
    found = differences(tmp_path / "one", tmp_path / "two")
    expected = [
        "model/model.safetensors",
        "predictions.parquet is in one run only",
        "checkpoint file model.safetensors",
    ]
    assert sorted(found) == sorted(expected)
    shutil.rmtree(tmp_path / "two")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert differences(tmp_path / "one", tmp_path / "two") == []

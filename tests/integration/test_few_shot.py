"""Few-shot tuning by its commands: a run, and its export in plain transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest
from transformers import pipeline

from tests.forks import forks

pytestmark = pytest.mark.integration


def finetune(folder: Path, *arguments: str, status: int = 0) -> str:
    done = forks().run(arguments, folder, os.environ)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    flags = ("--data", "sms_spam", "--set", "data.shots=4", "--set", "objective.rounds=2")
    said = finetune(
        folder, "run", "few_shot_cls", *flags, "--set", "data.max_tokens=32", "--seed", "3", "--output", "one"
    )
    assert "train: 8 rows, 4 of each class, drawn by the seed 3" in said
    assert "train: 32 pairs of 8 texts" in said
    return folder / "one"


def test_the_head_reads_messages_in_plain_transformers(run: Path) -> None:
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["status"] == "completed"
    assert record["updates"] == 2
    assert record["metrics"]["test"]["macro_f1"]["value"] > 0.6  # 0.68 was measured; the majority class has 0.47
    assert {*record["baselines"]} == {"majority class", "TF-IDF + logistic regression", "frozen-encoder probe"}
    text = "WINNER!! You have been selected for a £1000 prize, call now"
    (answer,) = pipeline("text-classification", str(run / "model"))(text)
    line = json.loads(finetune(run.parent, "predict", "one", "--text", text))
    assert line["prediction"] == answer["label"] == "spam"
    assert line["probability"] == pytest.approx(answer["score"], abs=1e-5)
    assert pyarrow.parquet.read_table(run / "predictions.parquet").num_rows == record["data"]["rows"]["test"]
